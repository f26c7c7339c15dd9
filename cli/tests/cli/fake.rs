//! Daemons with a state: what is created can be listed, what is removed is gone. A test can refuse calls and write
//! the script of a watch.

mod control;
mod node;
mod world;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use shoal_api::pb::control_server::ControlServer;
use shoal_api::pb::node_server::NodeServer;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

pub(crate) use world::{World, progress, service, task};

/// A swarm of one manager that exists only in this process.
pub(crate) struct Fake {
    dir: TempDir,
    world: Arc<Mutex<World>>,
}

impl Fake {
    /// Both daemons up.
    pub(crate) fn start() -> Self {
        let fake = Self::without_manager();
        fake.start_manager();
        fake
    }

    /// The node daemon alone; its manager process has not come up yet.
    pub(crate) fn without_manager() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Arc::new(Mutex::new(World::new(&dir.path().join("control.sock"))));
        let fake = Self { dir, world };
        let node = NodeServer::new(node::FakeNode(Arc::clone(&fake.world)));
        serve(&fake.path("api.sock"), Server::builder().add_service(node));
        fake
    }

    /// Starts the manager process.
    pub(crate) fn start_manager(&self) {
        let control = ControlServer::new(control::FakeControl(Arc::clone(&self.world)));
        serve(&self.path("control.sock"), Server::builder().add_service(control));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Value for -H.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("api.sock").display())
    }

    /// The state.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Runs a line against it.
    pub(crate) async fn run(&self, line: &str) -> crate::run::Outcome {
        crate::run::run(&self.host(), line).await
    }
}

fn serve(path: &Path, router: tonic::transport::server::Router) {
    let listener = UnixListener::bind(path).unwrap();
    // Ends with the test's runtime.
    tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
}
