//! Changes of endpoints and services, on a node that is as it should be.

use shoal_plan::desired::derive;
use shoal_plan::object::Fdb;
use shoal_types::assignment::{AssignedService, Endpoint, Member};
use shoal_types::{LbPolicy, MacAddr, Protocol, PublishedPort, ServiceIndex, Weight};

use super::*;

/// A node beside another one, on which a service has these endpoints; the even ones don't serve.
pub(super) fn told(generation: u64, endpoints: &[u32]) -> Assignment {
    let mut told = assigned(generation, None);
    let other = NodeId::from_entropy(2);
    let mut add = |object: Assigned| told.objects.insert(object.key(), object);
    add(Assigned::Member(Member {
        node: other.clone(),
        name: "n2".parse().expect("a label"),
        data_addr: [192, 0, 2, 2].into(),
        router: at(2),
    }));
    add(Assigned::Service(AssignedService {
        id: ServiceId::from_entropy(1),
        index: ServiceIndex(1),
        name: "web".parse().expect("a label"),
        vips: vec![],
        ports: vec![PublishedPort::everywhere(Protocol::Tcp, 8080, 80)],
        lb: LbPolicy::Auto,
        dnsrr: vec![],
    }));
    for number in endpoints {
        add(Assigned::Endpoint(Endpoint {
            id: EndpointId(*number),
            network: NetworkId::from_entropy(1 << 100),
            addr: at(*number).addr,
            node: other.clone(),
            task: TaskId::from_entropy((*number).into()),
            service: ServiceId::from_entropy(1),
            slot: Slot::Number(*number),
            serving: number % 2 == 1,
            weight: Weight::default(),
        }));
    }
    told
}

impl World {
    fn tell(&mut self, endpoints: &[u32]) -> Assignment {
        self.generation += 1;
        let told = told(self.generation, endpoints);
        self.assignment.send_replace(Arc::new(told.clone()));
        told
    }

    /// Whether the kernel holds what a node should that was told this, and nothing else.
    pub(super) async fn holds(&mut self, told: &Assignment) -> bool {
        let facts = self.kernel.clone().facts(told, &node()).await.expect("always");
        let facts = Facts { peers: self.stats.probes.peers().borrow().clone(), ..facts };
        let wanted = derive(told, &facts).expect("says who the node is");
        self.kernel.with(|state| state.objects == wanted)
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_made_without_looking_at_everything() {
    let mut world = World::start();
    let mut told = world.tell(&[11, 13, 15]);
    world.applied().await;
    for endpoints in [&[11, 13, 15, 17][..], &[11, 13, 14], &[21], &[], &[11, 12]] {
        assert!(world.holds(&told).await);
        let (observed, writes) = world.kernel.with(|state| (state.observed, state.writes));
        told = world.tell(endpoints);
        let applied = world.applied().await;
        assert_eq!((applied.generation, applied.errors), (told.generation, vec![]));
        assert!(world.holds(&told).await, "{endpoints:?}");
        assert_eq!(world.kernel.with(|state| state.observed), observed, "looked at everything");
        assert!(world.kernel.writes() > writes);
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_changed_in_the_meantime_is_for_the_sweep() {
    let mut world = World::start();
    world.tell(&[11, 13]);
    world.applied().await;
    // Both what the change is about and what it is not.
    world.kernel.with(|state| state.objects.retain(|key, _| !matches!(key, Key::LbEndpoint(_))));
    let told = world.tell(&[11]);
    world.applied().await;
    assert!(!world.holds(&told).await);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(world.holds(&told).await);
    assert_eq!(world.stats.drift().get("endpoint"), Some(&1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_fails_is_not_programmed_and_tried_again_over_everything() {
    let mut world = World::start();
    world.tell(&[11, 13]);
    world.applied().await;
    world.kernel.with(|state| state.refuse = Some("endpoint"));
    let told = world.tell(&[11, 13, 15]);
    let mut applied = world.reports.applied();
    let refused = applied.wait_for(|a| a.as_ref().is_some_and(|a| !a.errors.is_empty())).await;
    assert_eq!(refused.expect("runs").as_ref().expect("waited for").generation, Generation(1));
    world.kernel.with(|state| state.refuse = None);
    world.applied().await;
    assert!(world.holds(&told).await);
    assert!(world.stats.drift().is_empty(), "nobody else did it");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sweep_gives_way_to_changes_but_not_for_ever() {
    let mut world = World::start();
    world.tell(&[11]);
    world.applied().await;
    world.kernel.with(|state| state.slow = true);
    let looked = world.kernel.with(|state| state.observed);
    for round in 0..8 {
        // A sweep has been under way for a second: it comes 20 times as long after the last one as that took.
        tokio::time::sleep(Duration::from_secs(if round == 0 { 6 } else { 21 })).await;
        let begin = Instant::now();
        let told = world.tell(if round % 2 == 0 { &[11, 13] } else { &[11] });
        world.applied().await;
        assert!(begin.elapsed() < Duration::from_secs(1), "round {round}: {:?}", begin.elapsed());
        assert!(world.holds(&told).await);
    }
    assert_eq!(world.kernel.with(|state| state.observed), looked, "none came to an end");
    tokio::time::sleep(Duration::from_secs(21)).await;
    let begin = Instant::now();
    let told = world.tell(&[15]);
    world.applied().await;
    assert!(world.kernel.with(|state| state.observed) > looked, "this one came further");
    assert!(begin.elapsed() < SLOW * 2, "by the few and one slice: {:?}", begin.elapsed());
    assert!(world.holds(&told).await);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_goes_on_where_it_gave_way() {
    let mut world = World::start();
    world.tell(&[11]);
    world.applied().await;
    world.kernel.with(|state| {
        // What is repaired on the way stays so, and keeps no change waiting.
        state.objects.retain(|key, _| !matches!(key, Key::Fdb(..)));
        state.looks.clear();
        state.slow = true;
    });
    // In the middle of the third slice of the sweep that begins after five seconds,
    tokio::time::sleep(Duration::from_secs(5) + SLOW * 5 / 2).await;
    let begin = Instant::now();
    let told = world.tell(&[11, 13]);
    world.applied().await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(world.holds(&told).await);
    let looks = world.kernel.with(|state| std::mem::take(&mut state.looks));
    assert_eq!(looks, [Slice::Few, Slice::Forwarding]);
    // and the next one is at the rest.
    tokio::time::sleep(SLOW * 200).await;
    let looks = world.kernel.with(|state| std::mem::take(&mut state.looks));
    let rest = [Slice::Few, Slice::Neighbors4, Slice::Neighbors6, Slice::Peers, Slice::Endpoints];
    assert!(looks.starts_with(&[&rest[..], &Slice::ALL].concat()), "{looks:?}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_looked_at_is_not_programmed() {
    let mut world = World::start();
    world.tell(&[11]);
    world.applied().await;
    let (kernel, runtime) = world.stop().await;
    // All is in place; but the next daemon can't tell.
    kernel.with(|state| state.dark = Some(Slice::Neighbors6));
    let mut world = World::over(kernel, runtime, told(1, &[11]), 1);
    let mut applied = world.reports.applied();
    let lost = applied.wait_for(Option::is_some).await.expect("runs").clone().expect("waited for");
    assert_eq!(lost.generation, Generation(0));
    assert!(!lost.errors.is_empty());
    world.kernel.with(|state| {
        // Not made before, so nobody took it away.
        state.objects.retain(|key, _| !matches!(key, Key::LbEndpoint(_)));
        state.dark = None;
    });
    tokio::time::sleep(SWEEP * 2).await;
    assert!(world.holds(&told(1, &[11])).await);
    assert!(world.stats.drift().is_empty(), "{:?}", world.stats.drift());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_does_not_go_on_past_a_device_that_is_made_anew() {
    let mut world = World::start();
    world.tell(&[11]);
    world.applied().await;
    world.kernel.with(|state| state.slow = true);
    tokio::time::sleep(Duration::from_secs(5) + SLOW * 5 / 2).await;
    let told = world.tell(&[11, 13]);
    world.applied().await;
    // Forwarding entries were looked at. They go with the device that the next look makes anew.
    world.kernel.with(|state| {
        state.fragile = true;
        for object in state.objects.values_mut() {
            if let Object::Vxlan(vxlan) = object {
                vxlan.mtu += 1;
            }
        }
    });
    tokio::time::sleep(SLOW * 60).await;
    assert!(world.holds(&told).await);
    assert_eq!(world.stats.drift().into_keys().collect::<Vec<_>>(), ["vxlan"]);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_that_gave_way_comes_back_to_what_it_did_not_remove() {
    let mut world = World::start();
    world.tell(&[11]);
    world.applied().await;
    let entry = |object: &Object| if let Object::Fdb(entry) = object { Some(entry.clone()) } else { None };
    world.kernel.with(|state| {
        let entry = state.objects.values().find_map(entry).expect("of the endpoint");
        let other = Object::Fdb(Fdb { mac: MacAddr([2, 0, 0, 0, 0, 99]), ..entry });
        state.objects.insert(other.key(), other);
        state.slow = true;
    });
    // Forwarding entries have been looked at; what is to go of them goes in a later phase.
    tokio::time::sleep(Duration::from_secs(5) + SLOW * 5 / 2).await;
    let told = world.tell(&[11, 13]);
    world.applied().await;
    assert!(!world.holds(&told).await);
    // Another sweep begins 20 times as long after that as that took.
    tokio::time::sleep(SLOW * 60).await;
    assert!(world.holds(&told).await);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_for_the_end_of_a_burst_of_events() {
    let mut world = World::start();
    world.tell(&[11]);
    world.applied().await;
    world.events.send(()).await.expect("heard");
    tokio::time::sleep(SETTLE / 5).await;
    let (begin, observed) = (Instant::now(), world.kernel.with(|state| state.observed));
    let told = world.tell(&[11, 13]);
    world.applied().await;
    assert!(begin.elapsed() < SETTLE / 5, "{:?}", begin.elapsed());
    assert!(world.holds(&told).await);
    tokio::time::sleep(SETTLE).await;
    assert!(world.kernel.with(|state| state.observed) > observed, "the look comes after it");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_changed_is_looked_for_again_after_giving_way() {
    let mut world = World::start();
    world.tell(&[11, 13]);
    world.applied().await;
    world.kernel.with(|state| {
        state.objects.retain(|key, _| !matches!(key, Key::LbEndpoint(_)));
        (state.slow, state.touched) = (true, true);
    });
    // The look for it has begun, and takes 48 s.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    let told = world.tell(&[11, 13, 15]);
    world.applied().await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(!world.holds(&told).await);
    // Sooner than by the next sweep, which would begin four seconds from now, and find it in 52.
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(world.holds(&told).await);
    assert_eq!(world.stats.drift().get("endpoint"), Some(&2));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_one_task_lacks_keeps_nothing_else_from_going() {
    for kind in ["leg", "resolver", "task_if", "local", "hook"] {
        let mut world = World::start();
        world.tell(&[11, 13]);
        world.applied().await;
        let is_there = |world: &World, endpoint| {
            world.kernel.with(|state| state.objects.contains_key(&Key::LbEndpoint(EndpointId(endpoint))))
        };
        assert!(is_there(&world, 11));
        world.kernel.with(|state| state.refuse = Some(kind));
        world.generation += 1;
        let mut with_task = told(world.generation, &[13]);
        for object in assigned(0, Some(DesiredState::Running)).objects.values() {
            with_task.objects.insert(object.key(), object.clone());
        }
        world.assignment.send_replace(Arc::new(with_task));
        let applied = world.applied().await;
        assert!(!applied.errors.is_empty(), "{kind}");
        assert!(!is_there(&world, 11) && is_there(&world, 13), "{kind}");
        assert!(world.runtime.observe().await.expect("held").is_empty(), "{kind}: started without it");
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_new_flows_need_keeps_the_rest_from_going() {
    let mut world = World::start();
    world.tell(&[11, 13]);
    world.applied().await;
    world.kernel.with(|state| state.refuse = Some("service"));
    world.tell(&[13]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(world.kernel.with(|state| state.objects.contains_key(&Key::LbEndpoint(EndpointId(11)))));
    world.kernel.with(|state| state.refuse = None);
    world.applied().await;
    assert!(!world.kernel.with(|state| state.objects.contains_key(&Key::LbEndpoint(EndpointId(11)))));
    world.stop().await;
}
