//! How fast the IPVS driver programs the kernel, as JSON: a table made from nothing, then single changes to it.
//!
//! Needs root and a kernel with IPVS: `cargo xtask bench ipvs --vm uml`. Every table is in a namespace of its own that
//! ends before the next one begins, as all of them share the kernel's hash of services.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use serde::Serialize;
use shoal_agent::drivers::ipvs::{
    Destination, Forwarding, HashOptions, IpvsDriver, KernelTable, Outcome, Scheduler, Service, ServiceKey,
    Transport, VirtualService, VirtualServices,
};
use shoal_agent::drivers::link::Writes;
use shoal_agent::netns::Netns;

/// Services whose change is measured in each table, and how often.
const CHANGED: usize = 10;
const REPEATS: usize = 5;

#[derive(Parser)]
struct Args {
    /// Virtual services of the large table
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    services: u16,
    /// Virtual services of the small one
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    few: u16,
    /// Destinations of each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=200))]
    destinations: u8,
}

#[derive(Serialize)]
struct Document {
    bench: &'static str,
    kernel: String,
    destinations: u8,
    fills: Vec<Fill>,
    changes: Vec<Change>,
}

/// A table made from nothing.
#[derive(Serialize)]
struct Fill {
    services: u16,
    scheduler: String,
    ms: f64,
    writes: u64,
    /// A pass that finds everything right.
    unchanged_ms: f64,
}

/// One change to a table that is there.
#[derive(Serialize)]
struct Change {
    services: u16,
    scheduler: String,
    #[serde(rename = "change")]
    what: &'static str,
    /// The median.
    us: f64,
    /// Of each one.
    writes: u64,
}

/// A table of the kernel in a namespace of its own.
struct Table {
    driver: IpvsDriver<KernelTable>,
    writes: Writes,
    desired: VirtualServices,
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut fills = Vec::new();
    let mut changes = Vec::new();
    let maglev = Scheduler::Maglev(HashOptions::default());
    for services in [args.few, args.services] {
        for scheduler in [Scheduler::RoundRobin, maglev.clone()] {
            let (mut table, fill) = Table::fill(services, args.destinations, &scheduler)?;
            fills.push(fill);
            changes.extend(table.change_some(services, &scheduler)?);
        }
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let document = Document { bench: "ipvs", kernel, destinations: args.destinations, fills, changes };
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(())
}

impl Table {
    fn fill(services: u16, destinations: u8, scheduler: &Scheduler) -> anyhow::Result<(Self, Fill)> {
        let writes = Writes::default();
        let netns = Netns::anonymous().context("a namespace (this needs root)")?;
        let driver = IpvsDriver::new(KernelTable::open(&netns, writes.clone())?);
        let desired = virtual_services(services, destinations, scheduler);
        let mut table = Self { driver, writes, desired };
        let start = Instant::now();
        succeed(table.driver.reconcile(&table.desired)?)?;
        let made = start.elapsed();
        let writes = table.writes.total();
        let start = Instant::now();
        succeed(table.driver.reconcile(&table.desired)?)?;
        let compared = start.elapsed();
        ensure!(table.writes.total() == writes, "a table that is right was written to");
        let scheduler = scheduler.name().to_owned();
        let fill = Fill { services, scheduler, ms: ms(made), writes, unchanged_ms: ms(compared) };
        Ok((table, fill))
    }

    /// Changes services all over the table, one thing at a time.
    fn change_some(&mut self, services: u16, scheduler: &Scheduler) -> anyhow::Result<Vec<Change>> {
        let keys: Vec<_> = self.desired.keys().copied().collect();
        let keys: Vec<_> = keys.iter().step_by(keys.len().div_ceil(CHANGED)).copied().collect();
        let mut measured: BTreeMap<&'static str, Vec<(Duration, u64)>> = BTreeMap::new();
        for _ in 0..REPEATS {
            for key in &keys {
                let before = self.desired.get(key).context("a key of the table")?.clone();
                let weighed = with_another_weight(&before);
                let mut larger = weighed.clone();
                let new = Destination::new(([10, 3, 0, 1], 8080).into(), Forwarding::Nat, 1);
                larger.destinations.insert(new.address, new);
                for (name, from, to) in
                    [("weight", &before, &weighed), ("add", &weighed, &larger), ("remove", &larger, &weighed)]
                {
                    measured.entry(name).or_default().push(self.change(from, to)?);
                }
                self.desired.insert(*key, weighed);
            }
        }
        measured
            .into_iter()
            .map(|(what, mut each)| {
                each.sort();
                let writes = each.first().map_or(0, |first| first.1);
                ensure!(each.iter().all(|one| one.1 == writes), "'{what}' takes now more, now fewer writes");
                let median = each.get(each.len() / 2).map_or(Duration::ZERO, |middle| middle.0);
                let scheduler = scheduler.name().to_owned();
                Ok(Change { services, scheduler, what, us: (ms(median) * 1e3).round(), writes })
            })
            .collect()
    }

    fn change(&mut self, from: &VirtualService, to: &VirtualService) -> anyhow::Result<(Duration, u64)> {
        let before = self.writes.total();
        let start = Instant::now();
        let outcomes = self.driver.ensure(to, Some(from));
        let elapsed = start.elapsed();
        succeed(outcomes)?;
        Ok((elapsed, self.writes.total() - before))
    }
}

fn virtual_services(number: u16, destinations: u8, scheduler: &Scheduler) -> VirtualServices {
    (0..number)
        .map(|index| {
            let [high, low] = index.to_be_bytes();
            let address = ([10, 1, high, low], 80).into();
            let key = ServiceKey::Address { transport: Transport::Tcp, address };
            let destinations = (1..=destinations).map(|host| {
                let address = ([10, 2, low, host], 8080).into();
                Destination::new(address, Forwarding::Nat, 1)
            });
            (key, VirtualService::new(Service::new(key, scheduler.clone()), destinations))
        })
        .collect()
}

fn with_another_weight(service: &VirtualService) -> VirtualService {
    let mut changed = service.clone();
    if let Some(destination) = changed.destinations.values_mut().next() {
        destination.weight += 1;
    }
    changed
}

fn succeed(outcomes: Vec<Outcome>) -> anyhow::Result<()> {
    for outcome in outcomes {
        outcome.result.with_context(|| outcome.object.to_string())?;
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
