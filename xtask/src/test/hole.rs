//! What may be missing from the matrix. Anything else that did not run fails the tier.

use super::column::{Column, Engine, Form, Kernel};

/// Groups that guests run in the long form only: they wait for clocks, or ask the control plane and the names of a swarm,
/// which no kernel has a part in.
pub(super) const LONG_FORM_ONLY: [&str; 8] =
    ["answers", "barriers", "doctor", "health", "liveness", "members", "refusals", "renewal"];
/// The same under emulation, where an hour isn't enough for all: what an engine does on a kernel with a compiler is in
/// what is left, what else there is runs in user-mode Linux.
const NATIVE_ONLY: [&str; 14] = [
    "admission",
    "connect",
    "direct",
    "driver::bpf",
    "engines::balancers_go_with_their_last_connection",
    "faults",
    "flood",
    "flows::bytes_are_counted_where_they_enter_and_never_less",
    "flows::new_connections_go_by_the_weights_of_nodes",
    "lane",
    "names",
    "ports",
    "proxy",
    "repair",
];
/// The same on engine `ipvs`: what balances has no part in these groups; and of ports that the tables of services balance on
/// either engine, by the same programs, the other rows of their groups show that they do there, too.
const OF_EITHER_ENGINE: [&str; 13] = [
    "direct::an_address_that_moves_takes_its_connections_along",
    "direct::clients_behind_a_bridge_of_a_node_are_answered_by_it",
    "direct::datagrams_are_answered_from_where_they_were_sent_to",
    "direct::replacing_tasks_fails_no_request",
    "direct::streams_outlast_what_becomes_of_doors",
    "direct::what_it_does_not_go_with_is_refused",
    "lane",
    "proxy::a_port_in_host_mode_and_on_one_address_has_it_too",
    "proxy::large_transfers_are_whole",
    "proxy::many_connections_at_once_have_each_its_own",
    "proxy::virtual_ips_and_ports_beside_it_have_none",
    "proxy::what_can_t_have_it_is_refused",
    "proxy::what_somebody_changes_of_it_is_put_back",
];
pub(super) const LONG_FORM: &str = "long form";

/// A row, or all rows of a group, that columns of an engine or a kernel can't have.
struct Hole {
    kernel: Option<Kernel>,
    engine: Option<Engine>,
    rows: &'static str,
    reason: &'static str,
}

const fn without_nftables(rows: &'static str) -> Hole {
    Hole { kernel: Some(Kernel::Uml), engine: None, rows, reason: "the kernel has no nftables" }
}

const HOLES: [Hole; 11] = [
    without_nftables("liveness::a_suspect_node_is_out_of_the_mesh_and_comes_back_with_its_tasks"),
    without_nftables("liveness::a_node_that_is_cut_off_for_longer_is_replaced"),
    without_nftables("liveness::a_third_of_packets_lost_is_no_death"),
    without_nftables("members::a_node_whose_nft_fails_or_hangs_is_programmed_and_leaves"),
    without_nftables("mesh::no_conntrack_and_no_rule_on_the_path"),
    without_nftables("ports::what_tasks_ask_from_a_published_port_is_answered_to_them"),
    without_nftables("proxy::nothing_is_lost_or_doubled_where_packets_are"),
    without_nftables("repair::a_table_comes_back_under_streams"),
    Hole { kernel: None, engine: Some(Engine::Ebpf), rows: "engines::", reason: "about engine ipvs" },
    Hole { kernel: None, engine: Some(Engine::Ipvs), rows: "connect::", reason: "about engine ebpf" },
    Hole {
        kernel: None,
        engine: Some(Engine::Ipvs),
        rows: "mesh::tasks_by_netkit_and_by_veth_meet_each_other",
        reason: "about engine ebpf",
    },
];

/// Rows that this machine's own kernel may be able to run or not, with what it then lacks.
const OF_SOME_HOSTS: [(&str, &str); 1] =
    [("ports::a_vlan_of_an_uplink_has_the_ports_too", "the kernel has no VLAN devices")];

/// Why this machine's kernel may lack a row. It may have it as well.
pub(super) fn allowed(row: &str, column: Column) -> Option<&'static str> {
    let hole = OF_SOME_HOSTS.iter().find(|(rows, _)| *rows == row)?;
    (column.kernel == Kernel::Host).then_some(hole.1)
}

impl Hole {
    fn covers(&self, row: &str, column: Column) -> bool {
        self.kernel.is_none_or(|kernel| kernel == column.kernel)
            && self.engine.is_none_or(|engine| engine == column.engine)
            && row.starts_with(self.rows)
    }
}

/// Groups and rows that some columns leave out for lack of time.
struct LeftOut {
    parts: &'static [&'static str],
    by: fn(Column) -> bool,
}

const LEFT_OUT: [LeftOut; 3] = [
    LeftOut { parts: &LONG_FORM_ONLY, by: |column| column.kernel != Kernel::Host },
    LeftOut { parts: &NATIVE_ONLY, by: |column| column.kernel.is_emulated() },
    LeftOut {
        parts: &OF_EITHER_ENGINE,
        by: |column| column.kernel != Kernel::Host && column.engine == Engine::Ipvs,
    },
];

/// All groups and rows that some column leaves out for lack of time.
pub(super) fn long_form() -> impl Iterator<Item = &'static str> {
    LEFT_OUT.iter().flat_map(|left_out| left_out.parts.iter().copied())
}

/// Whether a column leaves out a row for lack of time.
pub(super) fn is_left_out(row: &str, column: Column, form: Form) -> bool {
    let is_of = |parts: &[&str]| {
        parts
            .iter()
            .any(|part| row.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
    };
    form == Form::Default && LEFT_OUT.iter().any(|left_out| (left_out.by)(column) && is_of(left_out.parts))
}

/// What holds for a row. What begins and ends a group is lacking where all that it is for is.
pub(super) fn of_row<T>(row: &str, rows: &[String], of: impl Fn(&str) -> Option<T>) -> Option<T> {
    if let found @ Some(_) = of(row) {
        return found;
    }
    let Some((group, "(start)" | "(leaves nothing)")) = row.split_once("::") else { return None };
    let is_scenario = |row: &&String| {
        row.split_once("::").is_some_and(|(other, name)| other == group && !name.starts_with('('))
    };
    rows.iter().filter(is_scenario).map(|row| of(row)).collect::<Option<Vec<_>>>()?.pop()
}

/// Why a column may lack a row, if it may.
pub(super) fn expected(row: &str, column: Column, form: Form) -> Option<&'static str> {
    if is_left_out(row, column, form) {
        return Some(LONG_FORM);
    }
    HOLES.iter().find(|hole| hole.covers(row, column)).map(|hole| hole.reason)
}
