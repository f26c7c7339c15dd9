//! Metrics and health over HTTP, on the node's loopback. Three paths and GET only: small enough to read a request by
//! hand, with limits on its size and time.

mod peers;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::pb;
use shoal_api::pb::bootstrap_client::BootstrapClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::dial;
use crate::health;
use crate::in_use::{Bytes, OTHERS, ServiceUse};
use crate::node::{Node, VERSION};
use crate::stats::Stats;

/// A request may be so long, and take so long.
const MAX_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// A manager has so long to tell its own, much less than a whole answer may take.
const MANAGER: Duration = Duration::from_secs(1);
const MAX_CONNECTIONS: usize = 32;

/// What is served.
#[derive(Clone)]
pub struct Exporter {
    node: Arc<Node>,
    stats: Arc<Stats>,
}

impl Exporter {
    /// Over a node and what it counts.
    pub fn new(node: Arc<Node>, stats: Arc<Stats>) -> Self {
        Self { node, stats }
    }

    /// Serves until it is told to close.
    pub async fn serve(self, address: SocketAddr, closing: CancellationToken) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // Accepting is cancel safe.
            let (stream, _) = tokio::select! {
                () = closing.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "a metrics connection failed");
                        continue;
                    }
                },
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let this = self.clone();
            tokio::spawn(async move {
                // A client that is slow or rude is cut off; there is nothing to tell.
                drop(timeout(PATIENCE, this.answer(stream)).await);
                drop(slot);
            });
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if request.len() > MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        let mut words = line.split(' ');
        let (status, body) = match (words.next(), words.next()) {
            (Some("GET"), Some("/metrics")) => ("200 OK", self.text() + &self.of_manager().await),
            (Some("GET"), Some("/healthz")) => ("200 OK", "ok\n".to_owned()),
            (Some("GET"), Some("/readyz")) if self.node.is_ready() => ("200 OK", "ready\n".to_owned()),
            (Some("GET"), Some("/readyz")) => ("503 Service Unavailable", "not programmed yet\n".to_owned()),
            (Some("GET"), _) => ("404 Not Found", "use /metrics, /healthz or /readyz\n".to_owned()),
            _ => ("405 Method Not Allowed", "use GET\n".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    }

    /// What the manager on this node exports; nothing where there is none, or it does not answer in time.
    async fn of_manager(&self) -> String {
        let socket = self.node.info().control_socket;
        if socket.is_empty() {
            return String::new();
        }
        let ask = async {
            let channel = dial::local(Path::new(&socket)).await.ok()?;
            Some(BootstrapClient::new(channel).metrics(pb::Empty {}).await.ok()?.into_inner().text)
        };
        timeout(MANAGER, ask).await.ok().flatten().unwrap_or_default()
    }

    fn text(&self) -> String {
        let (stats, info) = (&self.stats, self.node.info());
        let mut out = Text::default();
        out.one("shoal_agent_state_version", "gauge", "Generation the node was told last", info.generation);
        out.one(
            "shoal_agent_applied_version",
            "gauge",
            "Generation that is programmed",
            info.applied_generation,
        );
        out.one(
            "shoal_agent_kernel_writes_total",
            "counter",
            "Writes to the kernel",
            info.kernel_writes_total,
        );
        out.one(
            "shoal_agent_adopted_objects",
            "gauge",
            "Objects found in place at start",
            info.adopted_objects,
        );
        out.one("shoal_agent_connected", "gauge", "Whether there is a session", u64::from(info.connected));
        let warnings = count(info.warnings.len());
        out.one("shoal_agent_warnings", "gauge", "Objects not as wanted, files not on disk", warnings);
        out.head("shoal_agent_tasks", "gauge", "Tasks by state");
        out.series("shoal_agent_tasks", "state", "running", info.tasks_running.into());
        out.head(
            "shoal_agent_drift_repairs_total",
            "counter",
            "Objects that somebody else changed, put right",
        );
        if stats.drift().is_empty() {
            out.series("shoal_agent_drift_repairs_total", "object", "any", 0);
        }
        for (object, repairs) in stats.drift() {
            out.series("shoal_agent_drift_repairs_total", "object", object, repairs);
        }
        out.health_checks(stats);
        out.head("shoal_drops_total", "counter", "Packets the programs dropped, by reason");
        for (reason, packets) in stats.drops() {
            out.series("shoal_drops_total", "reason", reason, packets);
        }
        out.head(
            "shoal_program_packets_total",
            "counter",
            "Packets by program and what became of them: received is the sum of the others",
        );
        for (program, event, packets) in stats.packets() {
            let labels = format!("program=\"{program}\",event=\"{event}\"");
            out.raw(&format!("shoal_program_packets_total{{{labels}}} {packets}"));
        }
        out.connects(stats);
        out.services(stats);
        out.slots(stats);
        out.maps(stats);
        peers::text(&mut out, &stats.probes);
        out.0.push_str(&stats.dns.text());
        out.head("shoal_agent_program_seconds", "gauge", "Time of the last pass");
        let seconds = Duration::from_micros(Stats::get(&stats.last_pass_us)).as_secs_f64();
        out.raw(&format!("shoal_agent_program_seconds {seconds}"));
        out.certificate(&info);
        out.head("shoal_build_info", "gauge", "Version");
        out.series("shoal_build_info", "version", VERSION, 1);
        out.head("shoal_node_info", "gauge", "Which node this is");
        out.raw(&format!(
            "shoal_node_info{{node_id=\"{}\",node_name=\"{}\"}} 1",
            info.node_id, info.node_name
        ));
        out.0
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The text format. Labels hold ids and names of ours, which need no escaping.
#[derive(Default)]
struct Text(String);

impl Text {
    fn raw(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _written = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn series(&mut self, name: &str, label: &str, value: &str, number: u64) {
        self.raw(&format!("{name}{{{label}=\"{value}\"}} {number}"));
    }

    fn connects(&mut self, stats: &Stats) {
        let connects = stats.connects();
        self.one(
            "shoal_connect_hooks",
            "gauge",
            "Whether connections of tasks to virtual IPs are led to endpoints when they are made (else packet by packet)",
            u64::from(connects.is_some()),
        );
        self.head(
            "shoal_connect_translations_total",
            "counter",
            "Connections of tasks to virtual IPs that were led to an endpoint when they were made",
        );
        for family in ["ipv4", "ipv6"] {
            let number = connects.as_ref().and_then(|connects| connects.get(family)).copied().unwrap_or(0);
            self.raw(&format!(
                "shoal_connect_translations_total{{family=\"{family}\",proto=\"tcp\"}} {number}"
            ));
        }
    }

    fn services(&mut self, stats: &Stats) {
        type Column = (&'static str, &'static str, &'static str, fn(&ServiceUse) -> u64);
        const COLUMNS: [Column; 2] = [
            (
                "shoal_lb_new_connections_total",
                "counter",
                "Connections, and flows of datagrams, that entered by this node",
                |of| of.flows.new,
            ),
            (
                "shoal_lb_active_connections",
                "gauge",
                "Of these, those under way, but for what tasks were led to when they connected",
                |of| of.flows.live,
            ),
        ];
        let services = stats.services();
        let labels =
            |(service, network): &(String, String)| format!("service=\"{service}\",network=\"{network}\"");
        for (name, kind, help, number) in COLUMNS {
            self.head(name, kind, help);
            for (names, of) in &services {
                self.raw(&format!("{name}{{{}}} {}", labels(names), number(of)));
            }
        }
        let name = "shoal_lb_bytes_total";
        self.head(
            name,
            "counter",
            "Bytes of IP packets of these connections: in to the service, and out of it unless answers go another way",
        );
        for (names, of) in &services {
            self.bytes(name, &labels(names), of.flows.bytes);
        }
        self.head("shoal_lb_backends", "gauge", "Endpoints, by whether they take new connections");
        for (names, of) in &services {
            for (state, number) in [("serving", of.serving), ("withdrawn", of.withdrawn)] {
                self.raw(&format!("shoal_lb_backends{{{},state=\"{state}\"}} {number}", labels(names)));
            }
        }
    }

    fn slots(&mut self, stats: &Stats) {
        let name = "shoal_lb_endpoint_active_connections";
        self.head(
            name,
            "gauge",
            "Active connections by the slot of the endpoint; \"other\": endpoints beyond the thousand with the most",
        );
        let services = stats.services();
        let slots = services.iter().flat_map(|((service, network), of)| {
            of.slots.iter().map(move |(slot, used)| {
                (format!("service=\"{service}\",network=\"{network}\",slot=\"{slot}\""), slot, used)
            })
        });
        for (labels, _, used) in slots.clone() {
            self.raw(&format!("{name}{{{labels}}} {}", used.live));
        }
        let name = "shoal_lb_endpoint_bytes_total";
        self.head(name, "counter", "The service's bytes by the slot of the endpoint, of the same endpoints");
        for (labels, _, used) in slots.filter(|(_, slot, _)| *slot != OTHERS) {
            self.bytes(name, &labels, used.bytes);
        }
    }

    fn bytes(&mut self, name: &str, labels: &str, bytes: Bytes) {
        for (direction, number) in [("in", Some(bytes.requests)), ("out", bytes.answers())] {
            if let Some(number) = number {
                self.raw(&format!("{name}{{{labels},direction=\"{direction}\"}} {number}"));
            }
        }
    }

    fn maps(&mut self, stats: &Stats) {
        self.head(
            "shoal_bpf_map_pressure",
            "gauge",
            "How full a map of the programs is: entries by the limit",
        );
        for fill in stats.maps() {
            self.raw(&format!("shoal_bpf_map_pressure{{map=\"{}\"}} {:.4}", fill.map, fill.pressure()));
        }
    }

    fn health_checks(&mut self, stats: &Stats) {
        let checks = stats.health_checks();
        self.head("shoal_agent_health_checks_total", "counter", "Health checks of tasks, by result");
        for result in [health::GOOD, health::WRONG, health::SILENT, health::UNASKED] {
            let number = checks.get(result).copied().unwrap_or(0);
            self.series("shoal_agent_health_checks_total", "result", result, number);
        }
    }

    fn certificate(&mut self, info: &pb::LocalNode) {
        self.head("shoal_cert_expiry_timestamp_seconds", "gauge", "End of the certificate's life");
        self.series("shoal_cert_expiry_timestamp_seconds", "kind", "node", info.cert_expires_at_ms / 1000);
        self.head(
            "shoal_cert_renewal_overdue",
            "gauge",
            "Whether the certificate should have been renewed by now",
        );
        self.series("shoal_cert_renewal_overdue", "kind", "node", info.cert_renewal_overdue.into());
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, number: u64) {
        self.head(name, kind, help);
        self.raw(&format!("{name} {number}"));
    }
}
