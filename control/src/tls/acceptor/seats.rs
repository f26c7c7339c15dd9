//! Places at the control port for those who have shown no certificate: few for each address, so that one host takes
//! none from others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of one origin.
pub(super) const SEATS_PER_ORIGIN: usize = 64;
/// Handshakes of one address under way at once; its others wait for them. (Not of an origin: with IPv6 a whole LAN may be one.)
pub(super) const HANDSHAKES_PER_ADDRESS: usize = 8;
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

#[derive(Default)]
struct Taken {
    seats: usize,
    /// Of each address, as long as somebody from there has a seat.
    handshakes: BTreeMap<IpAddr, Weak<Semaphore>>,
}

impl Taken {
    fn turns_of(&mut self, addr: IpAddr) -> Arc<Semaphore> {
        if let Some(turns) = self.handshakes.get(&addr).and_then(Weak::upgrade) {
            return turns;
        }
        self.handshakes.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(HANDSHAKES_PER_ADDRESS));
        self.handshakes.insert(addr, Arc::downgrade(&turns));
        turns
    }
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
    pub(super) fn take(&self, addr: IpAddr) -> Result<Seat, Full> {
        let (origin, addr) = (Origin::of(addr), addr.to_canonical());
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let seats = all.get(&origin).map_or(0, |taken| taken.seats);
        if seats >= SEATS_PER_ORIGIN {
            return Err(Full::Origin);
        }
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| Full::All)?;
        let taken = all.entry(origin).or_default();
        taken.seats += 1;
        let handshakes = taken.turns_of(addr);
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

    fn ip(addr: &str) -> IpAddr {
        addr.parse().expect("literal")
    }

    #[test]
    fn a_host_has_its_own_seats_whatever_addresses_it_makes_up() {
        let seats = Seats::default();
        let one: Vec<_> = (0..SEATS_PER_ORIGIN)
            .map(|n| seats.take(ip(&format!("2001:db8:0:1::{n:x}"))).expect("free"))
            .collect();
        assert_eq!(seats.take(ip("2001:db8:0:1:ffff::1")).err(), Some(Full::Origin));
        let mapped = seats.take(ip("::ffff:192.0.2.1")).expect("of another");
        assert_eq!(mapped.origin, Origin::of(ip("192.0.2.1")));
        assert_ne!(mapped.origin, Origin::of(ip("192.0.2.2")));
        seats.take(ip("2001:db8:0:2::1")).expect("of another");
        drop(one);
        seats.take(ip("2001:db8:0:1::1")).expect("given back");
        assert_eq!(seats.taken.lock().expect("not poisoned").len(), 1, "nothing is kept of who has gone");
    }

    #[tokio::test]
    async fn hosts_of_one_network_don_t_wait_for_one_another() {
        let seats = Seats::default();
        let of = |addr: &str| seats.take(ip(addr)).expect("free");
        let silent: Vec<_> = (0..=HANDSHAKES_PER_ADDRESS).map(|_| of("2001:db8:0:1::bad")).collect();
        let mut turns = Vec::new();
        for seat in &silent[1..] {
            turns.push(seat.turn().await.expect("one of its eight"));
        }
        let other = of("2001:db8:0:1::1");
        assert!(other.turn().await.is_some());
        assert_eq!(silent[0].handshakes.available_permits(), 0);
        drop(turns);
        assert!(silent[0].turn().await.is_some());
        drop((silent, other));
        drop(of("2001:db8:0:1::2"));
        assert!(seats.taken.lock().expect("not poisoned").is_empty());
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let seats = Seats::default();
        let all: Vec<_> = (0..SEATS)
            .map(|n| seats.take(ip(&format!("10.0.{}.{}", n / 16 / 250, n / 16 % 250))).expect("free"))
            .collect();
        assert_eq!(seats.take(ip("192.0.2.1")).err(), Some(Full::All));
        drop(all);
        seats.take(ip("192.0.2.1")).expect("given back");
    }
}
