//! Telling the service manager how it goes (sd_notify(3)), and a file for those that have none.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use crate::durable;

/// Where readiness is told.
#[derive(Debug, Clone)]
pub struct Notify {
    socket: Option<String>,
    ready_file: PathBuf,
}

impl Notify {
    /// From the environment of the service manager. A `ready` file of an earlier run is taken away.
    pub fn new(socket: Option<String>, run_dir: &Path) -> Self {
        let this = Self { socket, ready_file: run_dir.join("ready") };
        this.not_ready();
        this
    }

    /// Recovered and, in a swarm, programmed once.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n"));
        if let Err(error) = durable::write(&self.ready_file, b"", 0o644) {
            tracing::warn!(error = &error as &dyn std::error::Error, "readiness is not shown");
        }
    }

    /// What is going on.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}\n"));
    }

    /// About to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1\n");
        self.not_ready();
    }

    fn not_ready(&self) {
        if let Err(error) = durable::remove(&self.ready_file) {
            tracing::warn!(error = &error as &dyn std::error::Error, "readiness is not taken back");
        }
    }

    fn send(&self, text: &str) {
        let Some(name) = &self.socket else { return };
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(name),
        };
        let sent = address.and_then(|address| {
            UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
            Ok(())
        });
        if let Err(error) = sent {
            tracing::debug!(error = &error as &dyn std::error::Error, "the service manager is not told");
        }
    }
}
