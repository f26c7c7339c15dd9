//! The way dependencies point.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::Context;
use serde::Deserialize;

use crate::tools::root;

/// Which members each member may depend on.
const EDGES: [(&str, &[&str]); 10] = [
    ("shoal-types", &[]),
    ("shoal-ebpf-common", &[]),
    ("shoal-api", &["shoal-types"]),
    ("shoal-core", &["shoal-types"]),
    ("shoal-plan", &["shoal-types"]),
    ("shoal-control", &["shoal-types", "shoal-api", "shoal-core"]),
    ("shoal-agent", &["shoal-types", "shoal-api", "shoal-plan", "shoal-ebpf-common"]),
    ("shoal-cli", &["shoal-types", "shoal-api"]),
    ("shoal-netns", &[]),
    ("xtask", &["shoal-netns"]),
];
/// Packages that decide and touch nothing.
const PURE: [&str; 4] = ["shoal-types", "shoal-core", "shoal-plan", "shoal-ebpf-common"];
/// What those may not reach, however far away.
const IMPURE: [&str; 14] = [
    "aya",
    "chrono",
    "getrandom",
    "hyper",
    "mio",
    "netlink-sys",
    "nix",
    "openraft",
    "rand",
    "rtnetlink",
    "socket2",
    "tokio",
    "tonic",
    "tracing",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

impl Dependency {
    /// Whether it is there when the package runs, and not only when it is tested or built.
    fn is_normal(&self) -> bool {
        self.dep_kinds.iter().any(|kind| kind.kind.is_none())
    }
}

/// Dependencies at run time by package, and the members, all by name.
struct Graph {
    normal: BTreeMap<String, BTreeSet<String>>,
    members: BTreeSet<String>,
}

/// Breaches in the dependency graph.
pub(super) fn check() -> anyhow::Result<Vec<String>> {
    let cargo = ["metadata", "--format-version", "1", "--locked"];
    let output = std::process::Command::new("cargo").args(cargo).current_dir(root()?).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let metadata: Metadata = serde_json::from_str(&text)
        .with_context(|| format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(breaches(&Graph::new(&metadata)))
}

impl Graph {
    fn new(metadata: &Metadata) -> Self {
        let names: BTreeMap<_, _> =
            metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
        let name = |id: &str| names.get(id).map_or_else(|| id.to_owned(), |name| (*name).to_owned());
        let mut normal: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            let dependencies = node.deps.iter().filter(|dependency| dependency.is_normal());
            // Versions of one package count as one.
            normal
                .entry(name(&node.id))
                .or_default()
                .extend(dependencies.map(|dependency| name(&dependency.pkg)));
        }
        Self { normal, members: metadata.workspace_members.iter().map(|id| name(id)).collect() }
    }

    /// The shortest way from a package to another, if there is any.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut seen = BTreeSet::from([from]);
        let mut ways = VecDeque::from([vec![from]]);
        while let Some(way) = ways.pop_front() {
            let last = *way.last()?;
            if last == to {
                return Some(way.into_iter().map(str::to_owned).collect());
            }
            for next in self.normal.get(last).into_iter().flatten() {
                if seen.insert(next) {
                    ways.push_back([&way[..], &[next.as_str()]].concat());
                }
            }
        }
        None
    }
}

fn breaches(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    let allowed: BTreeMap<_, _> = EDGES.into_iter().collect();
    for member in &graph.members {
        let Some(allowed) = allowed.get(member.as_str()) else {
            found.push(format!("package {member} isn't in the table of edges: say what it may depend on"));
            continue;
        };
        let own = graph.normal.get(member).into_iter().flatten().filter(|name| graph.members.contains(*name));
        for dependency in own.filter(|name| !allowed.contains(&name.as_str())) {
            found.push(format!("{member} may not depend on {dependency}"));
        }
    }
    for pure in PURE {
        for impure in IMPURE {
            if let Some(way) = graph.way(pure, impure) {
                found.push(format!("{pure} is pure and may not reach {impure}: {}", way.join(" -> ")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut normal: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            normal.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        Graph { normal, members: EDGES.iter().map(|(name, _)| (*name).to_owned()).collect() }
    }

    #[test]
    fn the_designed_edges_pass() {
        let designed: Vec<_> = EDGES
            .iter()
            .flat_map(|(from, to)| to.iter().map(move |to| (*from, *to)))
            .chain([("shoal-core", "serde")])
            .collect();
        assert_eq!(breaches(&graph(&designed)), Vec::<String>::new());
    }

    #[test]
    fn an_edge_the_wrong_way_is_found() {
        assert_eq!(breaches(&graph(&[("shoal-types", "shoal-api")])).len(), 1);
        assert_eq!(breaches(&graph(&[("shoal-agent", "shoal-control")])).len(), 1);
    }

    #[test]
    fn a_clock_behind_two_corners_is_found_with_the_way_there() {
        let found = breaches(&graph(&[
            ("shoal-core", "nice"),
            ("nice", "handy"),
            ("handy", "tokio"),
            ("handy", "nice"),
        ]));
        assert_eq!(
            found,
            ["shoal-core is pure and may not reach tokio: shoal-core -> nice -> handy -> tokio"]
        );
    }
}
