//! Ports whose clients are answered by the nodes of the tasks: what other nodes tell of their addresses.

use std::net::IpAddr;

use shoal_plan::doors::Told;

use super::change::told;
use super::*;

/// As [`told`], with or without a port of that kind.
fn assignment(generation: u64, endpoints: &[u32], is_direct: bool) -> Assignment {
    let mut told = told(generation, endpoints);
    for object in told.objects.values_mut() {
        if let Assigned::Service(service) = object {
            service.ports.iter_mut().for_each(|port| port.dsr = is_direct);
        }
    }
    told
}

fn addr(last: u8) -> IpAddr {
    [198, 51, 100, last].into()
}

/// What the other node tells.
fn addresses(last: u8) -> Told {
    [(NodeId::from_entropy(2), Arc::new(Addresses::of([addr(last)])))].into()
}

/// The addresses that the kernel may answer from.
fn doors(kernel: &FakeKernel) -> Vec<IpAddr> {
    kernel.with(|state| {
        let doors =
            state.objects.values().filter_map(|o| if let Object::Door(o) = o { Some(o.addr) } else { None });
        doors.collect()
    })
}

impl World {
    async fn tell_direct(&mut self, endpoints: &[u32], is_direct: bool) -> Assignment {
        self.generation += 1;
        let told = assignment(self.generation, endpoints, is_direct);
        self.assignment.send_replace(Arc::new(told.clone()));
        self.applied().await;
        told
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_that_others_tell_are_programmed_and_the_same_again_wakes_nobody() {
    let mut world = World::start();
    let told = world.tell_direct(&[11, 13], true).await;
    assert!(doors(&world.kernel).is_empty());
    let begin = Instant::now();
    for last in [7, 8] {
        world.stats.probes.hand_on(addresses(last));
        world.until("the address is known", |world| doors(&world.kernel) == [addr(last)]).await;
        assert!(world.holds(&told).await);
    }
    assert!(begin.elapsed() < SWEEP, "found by a sweep");
    let observed = world.kernel.with(|state| state.observed);
    world.stats.probes.hand_on(addresses(8));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.kernel.with(|state| state.observed), observed);
    world.stats.probes.hand_on(Told::new());
    world.until("the address is forgotten", |world| doors(&world.kernel).is_empty()).await;
    assert!(world.stats.drift().is_empty(), "nobody else did it");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_such_port_and_the_last_one_are_about_everything() {
    let mut world = World::start();
    world.stats.probes.hand_on(addresses(7));
    for (endpoints, is_direct) in [(&[11, 13][..], false), (&[11], true), (&[11, 15], true), (&[15], false)] {
        let told = world.tell_direct(endpoints, is_direct).await;
        assert!(world.holds(&told).await, "{endpoints:?}, {is_direct}");
        assert_eq!(doors(&world.kernel).is_empty(), !is_direct);
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_for_what_others_told_at_the_same_time() {
    let mut world = World::start();
    world.stats.probes.hand_on(addresses(7));
    world.tell_direct(&[11, 13], true).await;
    for last in [8, 9] {
        let observed = world.kernel.with(|state| {
            state.slow = true;
            state.observed
        });
        let before = doors(&world.kernel);
        world.stats.probes.hand_on(addresses(last));
        let told = world.tell_direct(&[11, u32::from(last) * 2 + 1], true).await;
        assert_eq!(world.kernel.with(|state| state.observed), observed, "looked at everything first");
        assert_eq!(doors(&world.kernel), before);
        // The look that is under way takes a minute.
        world.kernel.with(|state| state.slow = false);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(doors(&world.kernel), [addr(last)]);
        assert!(world.holds(&told).await);
    }
    for last in 20..36 {
        let begin = Instant::now();
        world.stats.probes.hand_on(addresses(last));
        world.tell_direct(&[11, u32::from(last) * 2 + 1], true).await;
        world.until("the address is known", |world| doors(&world.kernel) == [addr(last)]).await;
        assert!(begin.elapsed() < Duration::from_secs(1), "left to a sweep");
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_starts_again_writes_nothing_before_the_others_are_heard() {
    let mut world = World::start();
    world.stats.probes.hand_on(addresses(7));
    let told = world.tell_direct(&[11, 13], true).await;
    let (kernel, runtime) = world.stop().await;
    let writes = kernel.writes();
    let mut again = World::over(kernel, runtime, told.clone(), 1);
    again.applied().await;
    assert!(again.holds(&told).await);
    assert_eq!(again.kernel.writes(), writes);
    assert_eq!(doors(&again.kernel), [addr(7)]);
    again.stats.probes.hand_on(Told::new());
    again.until("the address is forgotten", |world| doors(&world.kernel).is_empty()).await;
    again.stop().await;
}
