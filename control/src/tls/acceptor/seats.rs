//! Places at the control port for those who have shown no certificate: few for each address, so that one host takes
//! none from others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of one address.
pub(super) const SEATS_PER_ORIGIN: usize = 64;
/// Handshakes of one address under way at once; its others wait for them.
pub(super) const HANDSHAKES_PER_ORIGIN: usize = 8;
/// Of all addresses together.
const SEATS: usize = 1024;

/// Whom an address stands for: itself, or with IPv6 its /64, which is what one host is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin(IpAddr);

impl Origin {
    pub(super) fn of(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("its address has {SEATS_PER_ORIGIN} connections without a certificate")]
    Origin,
    #[error("{SEATS} connections without a certificate are open")]
    All,
}

struct Taken {
    seats: usize,
    handshakes: Arc<Semaphore>,
}

/// All seats.
#[derive(Clone)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<BTreeMap<Origin, Taken>>>,
}

impl Default for Seats {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(SEATS)), taken: Arc::default() }
    }
}

impl Seats {
    /// A seat for somebody from there, if one is free.
    pub(super) fn take(&self, origin: Origin) -> Result<Seat, Full> {
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let seats = all.get(&origin).map_or(0, |taken| taken.seats);
        if seats >= SEATS_PER_ORIGIN {
            return Err(Full::Origin);
        }
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| Full::All)?;
        let taken = all.entry(origin).or_insert_with(|| Taken {
            seats: 0,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_PER_ORIGIN)),
        });
        taken.seats += 1;
        let handshakes = Arc::clone(&taken.handshakes);
        Ok(Seat { origin, handshakes, all: self.clone(), _permit: permit })
    }
}

/// A place of somebody whom nothing vouches for; given back when dropped.
pub(super) struct Seat {
    origin: Origin,
    handshakes: Arc<Semaphore>,
    all: Seats,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// The turn for a handshake.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.handshakes).acquire_owned().await.ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.all.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = all.get_mut(&self.origin) {
            taken.seats -= 1;
            if taken.seats == 0 {
                all.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(addr: &str) -> Origin {
        Origin::of(addr.parse().expect("literal"))
    }

    #[test]
    fn a_host_has_its_own_seats_whatever_addresses_it_makes_up() {
        let seats = Seats::default();
        let one: Vec<_> = (0..SEATS_PER_ORIGIN)
            .map(|n| seats.take(origin(&format!("2001:db8:0:1::{n:x}"))).expect("free"))
            .collect();
        assert_eq!(seats.take(origin("2001:db8:0:1:ffff::1")).err(), Some(Full::Origin));
        let mapped = seats.take(origin("::ffff:192.0.2.1")).expect("of another");
        assert_eq!(mapped.origin, origin("192.0.2.1"));
        assert_ne!(mapped.origin, origin("192.0.2.2"));
        seats.take(origin("2001:db8:0:2::1")).expect("of another");
        drop(one);
        seats.take(origin("2001:db8:0:1::1")).expect("given back");
        assert_eq!(seats.taken.lock().expect("not poisoned").len(), 1, "nothing is kept of who has gone");
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let seats = Seats::default();
        let all: Vec<_> = (0..SEATS)
            .map(|n| seats.take(origin(&format!("10.0.{}.{}", n / 16 / 250, n / 16 % 250))).expect("free"))
            .collect();
        assert_eq!(seats.take(origin("192.0.2.1")).err(), Some(Full::All));
        drop(all);
        seats.take(origin("192.0.2.1")).expect("given back");
    }
}
