//! Every key there is. What is not built yet is not here.

/// A key.
#[derive(Debug, Clone, Copy)]
pub struct KeyInfo {
    /// `section.key` as in the file, or the name of a path that only flag and environment set.
    pub key: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The default.
    pub default: &'static str,
    /// What it is.
    pub help: &'static str,
}

impl KeyInfo {
    /// Whether a file may set it. A node's own paths and names are given on the command line or in the environment.
    pub fn in_file(&self) -> bool {
        self.key.contains('.')
    }
}

const fn key(key: &'static str, env: &'static str, default: &'static str, help: &'static str) -> KeyInfo {
    KeyInfo { key, env, default, help }
}

/// All of them.
pub const KEYS: &[KeyInfo] = &[
    key("state_dir", "SHOAL_STATE_DIR", "/var/lib/shoal", "what must survive a restart"),
    key("run_dir", "SHOAL_RUN_DIR", "/run/shoal", "sockets and namespaces"),
    key("bpf_dir", "SHOAL_BPF_DIR", "/sys/fs/bpf/shoal", "pins of the data plane"),
    key("cgroup", "SHOAL_CGROUP", "shoal", "level in the control group hierarchies"),
    key("node.name", "SHOAL_NODE_NAME", "", "the node's name; the host's if empty"),
    key("node.advertise", "SHOAL_NODE_ADVERTISE", "", "address or interface others reach this node by"),
    key(
        "node.data_path",
        "SHOAL_NODE_DATA_PATH",
        "",
        "address or interface of the overlay; as advertise if empty",
    ),
    key(
        "node.listen",
        "SHOAL_NODE_LISTEN",
        "[::]:7377",
        "where a manager listens; others reach it by that port",
    ),
    key(
        "agent.suspect_after",
        "SHOAL_AGENT_SUSPECT_AFTER",
        "2s",
        "a manager takes a node that is silent for so long out of the load balancers",
    ),
    key(
        "agent.down_after",
        "SHOAL_AGENT_DOWN_AFTER",
        "10s",
        "a manager replaces the tasks of a node that is silent for so long",
    ),
    key("network.mtu", "SHOAL_NETWORK_MTU", "auto", "MTU of the way to the peers"),
    key(
        "network.lb_engine",
        "SHOAL_NETWORK_LB_ENGINE",
        "auto",
        "what balances on this node: auto (as the swarm is set), ipvs or ebpf",
    ),
    key(
        "network.fast_lane",
        "SHOAL_NETWORK_FAST_LANE",
        "auto",
        "whether the programs handle tunnel packets themselves, past the VXLAN devices: auto (if the kernel compiles \
         programs), on or off",
    ),
    key(
        "network.netkit",
        "SHOAL_NETWORK_NETKIT",
        "off",
        "whether interfaces of new tasks are netkit devices, by which what a task sends skips the CPU's backlog: auto (if the \
         kernel has them), on, or off (veth); only with network.lb_engine = ebpf",
    ),
    key(
        "network.flow_entries",
        "SHOAL_NETWORK_FLOW_ENTRIES",
        "262144",
        "flows the node remembers; counts when the tables are made, as after a reboot or 'shoald cleanup'",
    ),
    key(
        "network.connect_hooks",
        "SHOAL_NETWORK_CONNECT_HOOKS",
        "auto",
        "whether a task's TCP connection to a virtual IP is led to an endpoint once, when it is made: auto and on (where \
         kernel and control groups allow), or off (each packet is translated)",
    ),
    key(
        "dns.search",
        "SHOAL_DNS_SEARCH",
        "true",
        "whether tasks try names in the host's search domains, too",
    ),
    key(
        "security.cert_lifetime",
        "SHOAL_SECURITY_CERT_LIFETIME",
        "7d",
        "life of certificates in a swarm that this node makes",
    ),
    key("observe.metrics", "SHOAL_OBSERVE_METRICS", "127.0.0.1:7379", "where metrics are served, or off"),
    key("observe.log", "SHOAL_OBSERVE_LOG", "info", "log filter"),
    key("observe.log_format", "SHOAL_OBSERVE_LOG_FORMAT", "text", "text or json"),
];
