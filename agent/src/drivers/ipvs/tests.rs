use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

fn key(port: u16) -> ServiceKey {
    ServiceKey::Address { transport: Transport::Tcp, address: ([10, 0, 0, 1], port).into() }
}

fn service(port: u16) -> Service {
    Service::new(key(port), Scheduler::RoundRobin)
}

fn destination(host: u8, weight: u32) -> Destination {
    Destination::new(([10, 0, 1, host], 80).into(), Forwarding::Nat, weight)
}

fn web(destinations: &[Destination]) -> VirtualService {
    VirtualService::new(service(80), destinations.iter().copied())
}

fn all(services: impl IntoIterator<Item = VirtualService>) -> VirtualServices {
    services.into_iter().map(|each| (each.service.key, each)).collect()
}

fn changes(outcomes: Vec<Outcome>) -> Vec<(Object, Change)> {
    outcomes.into_iter().map(|outcome| (outcome.object, outcome.result.unwrap())).collect()
}

fn to(host: u8) -> Object {
    Object::Destination(key(80), destination(host, 1).address)
}

#[test]
fn a_pass_creates_and_the_next_one_writes_nothing() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    let desired = all([web(&[destination(1, 1), destination(2, 1)])]);
    let first = changes(driver.reconcile(&desired).unwrap());
    let service = Object::Service(key(80));
    assert_eq!(first, [(service, Change::Created), (to(1), Change::Created), (to(2), Change::Created)]);
    let writes = driver.table().writes;
    assert!(driver.reconcile(&desired).unwrap().is_empty());
    assert_eq!(driver.table().writes, writes);
}

#[test]
fn one_change_is_one_write_and_removal_comes_after_what_replaces_it() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    driver.reconcile(&all([web(&[destination(1, 1), destination(2, 1)])])).unwrap();
    // A drain, then a replacement, then another scheduler.
    let drained = all([web(&[destination(1, 0), destination(2, 1)])]);
    assert_eq!(changes(driver.reconcile(&drained).unwrap()), [(to(1), Change::Changed)]);
    let replaced = all([web(&[destination(2, 1), destination(3, 1)])]);
    let outcomes = changes(driver.reconcile(&replaced).unwrap());
    assert_eq!(outcomes, [(to(3), Change::Created), (to(1), Change::Removed)]);
    let mut other = web(&[destination(2, 1), destination(3, 1)]);
    other.service.scheduler = Scheduler::Maglev(HashOptions::default());
    let outcomes = changes(driver.reconcile(&all([other])).unwrap());
    assert_eq!(outcomes, [(Object::Service(key(80)), Change::Changed)]);
}

#[test]
fn what_is_not_desired_is_pruned() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    let mark = ServiceKey::Mark { family: Family::V6, mark: NonZeroU32::MIN };
    driver.table().create_service(&Service::new(mark, Scheduler::Failover)).unwrap();
    assert_eq!(changes(driver.reconcile(&all([])).unwrap()), [(Object::Service(mark), Change::Removed)]);
    assert!(driver.table().content().is_empty());
}

#[test]
fn what_others_did_in_between_is_compared() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    let desired = web(&[destination(1, 1), destination(2, 1)]);
    // Nothing was observed, yet all of it is there: the service and one destination right, the other one wrong.
    driver.reconcile(&all([web(&[destination(1, 1), destination(2, 9)])])).unwrap();
    let outcomes = changes(driver.ensure(&desired, None));
    let service = Object::Service(key(80));
    assert_eq!(
        outcomes,
        [(service, Change::Unchanged), (to(1), Change::Unchanged), (to(2), Change::Changed)]
    );
    // Observed, and gone by now.
    let observed = desired.clone();
    driver.table().delete_service(&key(80)).unwrap();
    let changed = web(&[destination(1, 5), destination(2, 1)]);
    let outcomes = driver.ensure(&changed, Some(&observed));
    assert!(matches!(outcomes[0].result, Err(IpvsError::NotFound(Object::Service(_)))), "{outcomes:?}");
    assert!(outcomes[0].result.as_ref().unwrap_err().is_retryable());
    driver.reconcile(&all([changed.clone()])).unwrap();
    driver.table().delete_destination(&key(80), &destination(1, 5)).unwrap();
    let outcomes = changes(driver.ensure(&web(&[destination(1, 6), destination(2, 1)]), Some(&changed)));
    assert_eq!(outcomes, [(to(1), Change::Created)]);
    assert_eq!(driver.remove(&key(81)).result.unwrap(), Change::Unchanged);
}

#[test]
fn a_missing_scheduler_or_module_is_named_and_the_rest_goes_on() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    driver.table().missing_schedulers.insert("mh".to_owned());
    let mut lacking = VirtualService::new(service(79), [destination(1, 1)]);
    lacking.service.scheduler = Scheduler::Maglev(HashOptions::default());
    let outcomes = driver.reconcile(&all([lacking, web(&[])])).unwrap();
    assert_eq!(outcomes.len(), 2);
    let error = outcomes[0].result.as_ref().unwrap_err();
    let text = "no scheduler 'mh' for IPVS service 10.0.0.1:79/tcp: load the module ip_vs_mh";
    assert_eq!(error.to_string(), text);
    assert!(!error.is_retryable());
    assert_eq!(*outcomes[1].result.as_ref().unwrap(), Change::Created);
    driver.table().has_module = false;
    assert!(matches!(driver.reconcile(&all([])), Err(IpvsError::ModuleMissing)));
}

#[test]
fn a_refused_destination_does_not_stop_the_others() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    let wrong = Destination { upper: 1, lower: 2, ..destination(1, 1) };
    let outcomes = driver.reconcile(&all([web(&[wrong, destination(2, 1)])])).unwrap();
    assert!(outcomes[1].result.as_ref().is_err_and(|error| !error.is_retryable()), "{outcomes:?}");
    assert_eq!(*outcomes[2].result.as_ref().unwrap(), Change::Created);
}

#[test]
fn a_destination_of_the_namespace_itself_settles() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    driver.table().local.insert(destination(1, 1).address);
    let desired = all([web(&[destination(1, 1)])]);
    driver.reconcile(&desired).unwrap();
    assert!(driver.reconcile(&desired).unwrap().is_empty());
}

#[test]
fn time_outs_that_are_zero_stay() {
    let mut table = FakeTable::default();
    let wanted = Timeouts { udp: std::time::Duration::from_secs(30), ..Timeouts::default() };
    table.set_timeouts(&wanted).unwrap();
    let read = table.timeouts().unwrap();
    assert_eq!((read.tcp.as_secs(), read.udp.as_secs()), (900, 30));
}

fn any_services() -> impl Strategy<Value = VirtualServices> {
    let scheduler = prop::sample::select(Scheduler::ALL.to_vec());
    let destinations = proptest::collection::vec((0..6u8, 0..3u32), 0..6);
    let one = (1..6u16, scheduler, destinations).prop_map(|(port, scheduler, destinations)| {
        let destinations = destinations.into_iter().map(|(host, weight)| destination(host, weight));
        VirtualService::new(Service::new(key(port), scheduler), destinations)
    });
    proptest::collection::vec(one, 0..6).prop_map(all)
}

proptest! {
    /// From any table to any other in one pass, and the second pass finds nothing to do.
    #[test]
    fn a_pass_converges(first in any_services(), second in any_services()) {
        let mut driver = IpvsDriver::new(FakeTable::default());
        driver.reconcile(&first).unwrap();
        prop_assert_eq!(driver.table().content(), &first);
        driver.reconcile(&second).unwrap();
        prop_assert_eq!(driver.table().content(), &second);
        prop_assert_eq!(driver.reconcile(&second).unwrap().len(), 0);
        prop_assert_eq!(driver.observe().unwrap(), second);
    }
}

#[test]
fn a_maglev_table_is_computed_when_all_destinations_are_there() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    let maglev = Service::new(key(80), Scheduler::Maglev(HashOptions { fallback: true, port: true }));
    let desired = VirtualService::new(maglev, [destination(2, 1), destination(1, 1)]);
    let outcomes = driver.ensure(&desired, None);
    assert_eq!(outcomes.len(), 3, "to who looks, the service was made once: {outcomes:?}");
    assert_eq!(driver.table().writes, 4);
    assert_eq!(driver.observe().expect("readable"), all([desired.clone()]));
    // What is there already is changed in place.
    let more = VirtualService::new(
        desired.service.clone(),
        [destination(2, 1), destination(1, 0), destination(3, 1)],
    );
    assert_eq!(driver.ensure(&more, Some(&desired)).len(), 2);
    assert_eq!(driver.table().writes, 6);
}

#[test]
fn without_its_scheduler_a_service_stays_in_its_first_form_and_the_next_pass_tries_again() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    driver.table().missing_schedulers.insert("mh".to_owned());
    let maglev = Service::new(key(80), Scheduler::Maglev(HashOptions::default()));
    let desired = all([VirtualService::new(maglev, [destination(1, 1), destination(2, 1)])]);
    let failed = |outcomes: &[Outcome]| outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
    assert_eq!(failed(&driver.reconcile(&desired).expect("readable")), 1);
    assert_ne!(driver.observe().expect("readable"), desired, "it shows as a difference");
    driver.table().missing_schedulers.clear();
    assert_eq!(failed(&driver.reconcile(&desired).expect("readable")), 0);
    assert_eq!(driver.observe().expect("readable"), desired);
}

#[test]
fn a_destination_that_is_put_in_later_is_made_too() {
    let mut driver = IpvsDriver::new(FakeTable::default());
    let mut service = web(&[destination(2, 1), destination(1, 1)]);
    driver.ensure(&service, None);
    let before = service.clone();
    let new = destination(3, 1);
    service.destinations.insert(new.address, new);
    assert_eq!(changes(driver.ensure(&service, Some(&before))), [(to(3), Change::Created)]);
    let order: Vec<_> = service.in_sequence().map(|each| each.address).collect();
    assert_eq!(order, [2, 1, 3].map(|host| destination(host, 1).address));
}
