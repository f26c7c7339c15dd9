//! Making a swarm, and joining one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_api::pb;
use shoal_api::pb::bootstrap_client::BootstrapClient;
use shoal_api::pb::ca_client::CaClient;
use shoal_api::pb::control_client::ControlClient;
use shoal_api::status::ApiError;
use shoal_plan::Uplink;
use shoal_types::ErrorCode;
use shoal_types::token::Token;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::address::{self, CONTROL_PORT};
use super::member::Member;
use super::record::Record;
use super::{FIRST_PASS, Node, failed, preflight};
use crate::config::Listen;
use crate::dial;
use crate::drivers::link::{Nl, Writes};
use crate::durable;
use crate::facts;
use crate::netns::Netns;
use crate::pki::{Identity, NewKey, PinnedVerifier, joining_config};
use crate::reconciler::chain;
use crate::supervisor::{self, ControlArgs, Supervisor};

/// A new manager may take so long until it signs.
const BOOTSTRAP: Duration = Duration::from_secs(30);
/// How often the token that init prints can be used.
const FIRST_TOKEN_USES: u32 = 10;

fn internal(what: &str, error: &dyn std::error::Error) -> ApiError {
    failed(ErrorCode::Internal, what, error)
}

async fn uplinks() -> Result<Vec<Uplink>, ApiError> {
    let look = async || -> Result<Vec<Uplink>, crate::drivers::link::LinkError> {
        let connection = Netns::current()?.netlink()?;
        let nl = Nl::new(connection.handle(), &Writes::default());
        let links = nl.links().await?;
        Ok(facts::uplinks(&links, &nl.addresses().await?))
    };
    look().await.map_err(|error| internal("cannot list the addresses of this host", &error))
}

fn not_member_yet(member: Option<&Member>) -> Result<(), ApiError> {
    match member {
        None => Ok(()),
        Some(member) => Err(ApiError::new(
            ErrorCode::AlreadyMember,
            format!("this node is in swarm '{}' already", member.record().cluster_name),
        )
        .with_help("leave it first: shoal swarm leave")),
    }
}

/// A random text that names a request.
fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Node {
    /// Makes a swarm with this node as its first manager.
    pub async fn init(&self, request: pb::InitRequest) -> Result<pb::InitReply, Status> {
        let mut slot = self.member.lock().await;
        not_member_yet(slot.as_ref())?;
        let uplinks = uplinks().await?;
        let given = |text: &str, configured: &Option<String>| {
            Some(text.to_owned()).filter(|text| !text.is_empty()).or_else(|| configured.clone())
        };
        let advertise = given(&request.advertise, &self.config.advertise);
        let (ip, port) = address::resolve("advertise-addr", advertise.as_deref(), &uplinks)?;
        let advertise = address::advertised(ip, port, self.config.listen)?;
        let data_addr = match given(&request.data_path, &self.config.data_path) {
            Some(text) => {
                let why = "the overlay's is given with --data-path-port";
                address::resolve_bare("data-path-addr", Some(&text), &uplinks, why)?
            }
            None => ip,
        };
        let trial = preflight(&self.config).await?;
        self.set_membership(pb::Membership::Joining);
        let outcome = self.bootstrap(&request, advertise, data_addr).await;
        match outcome {
            Ok(member) => {
                trial.keep();
                self.become_member(&member);
                let programmed = member.wait_programmed(FIRST_PASS).await;
                *slot = Some(member);
                if !programmed {
                    tracing::warn!("the first programming takes long");
                }
                self.init_reply(advertise).await
            }
            Err(error) => {
                self.set_membership(pb::Membership::None);
                self.forget_files();
                Err(error.into())
            }
        }
    }

    async fn bootstrap(
        &self,
        request: &pb::InitRequest,
        advertise: SocketAddr,
        data_addr: IpAddr,
    ) -> Result<Member, ApiError> {
        let control = self.control_args(advertise, data_addr);
        let mut bootstrap =
            vec!["--bootstrap".to_owned(), "--node-name".to_owned(), self.config.name.to_string()];
        let mut option = |name: &str, value: String| bootstrap.extend([name.to_owned(), value]);
        option("--cert-lifetime", self.config.cert_lifetime.as_secs().to_string());
        if !request.name.is_empty() {
            option("--cluster-name", request.name.clone());
        }
        if request.data_port != 0 {
            option("--data-port", request.data_port.to_string());
        }
        for pool in &request.pools {
            option("--pool", pool.clone());
        }
        if request.pool_size != 0 {
            option("--pool-size", request.pool_size.to_string());
        }
        if !request.lb_engine.is_empty() {
            option("--lb-engine", request.lb_engine.clone());
        }
        let supervisor = self
            .start_control_with(control, bootstrap)
            .map_err(|error| internal("cannot start the manager", &error))?;
        let member = self.first_member(&supervisor, advertise, data_addr).await;
        match member {
            Ok(record) => self.activate(record, Some(supervisor)),
            Err(error) => {
                supervisor.stop().await;
                Err(error)
            }
        }
    }

    /// Gets this node's certificate from the manager that was just started.
    async fn first_member(
        &self,
        supervisor: &Supervisor,
        advertise: SocketAddr,
        data_addr: IpAddr,
    ) -> Result<Record, ApiError> {
        let key = NewKey::generate().map_err(|error| internal("cannot make a key", &error))?;
        let deadline = Instant::now() + BOOTSTRAP;
        let certificate = loop {
            match self.issue_local(&key).await {
                Ok(certificate) => break certificate,
                Err(_) if supervisor.first_failure().is_some() => {
                    let said = supervisor.first_failure().unwrap_or_default();
                    // The error alone, without what a line of the log has before it.
                    let said = said
                        .rsplit_once("error=")
                        .map_or(said.as_str(), |(_, error)| error.trim_matches('"'));
                    return Err(ApiError::new(
                        ErrorCode::InvalidField,
                        format!("the manager did not start: {said}"),
                    )
                    .with_help("correct what it names; the log of shoald has all it said"));
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(ApiError::new(
                        ErrorCode::Internal,
                        format!("the manager does not come up: {error}"),
                    )
                    .with_help("the log of shoald has what shoal-control said"));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        };
        let mut record = self.store_certificate(key, &certificate, data_addr)?;
        record.advertise = Some(advertise);
        if record.managers.is_empty() {
            record.managers.push(advertise);
        }
        record.cluster_name = self.cluster_name().await.unwrap_or_default();
        record.store(&self.config).map_err(|error| internal("cannot keep the membership", &error))?;
        Ok(record)
    }

    async fn issue_local(&self, key: &NewKey) -> Result<pb::Certificate, String> {
        let channel = dial::local(&self.config.control_socket()).await.map_err(|error| chain(&error))?;
        let request = pb::RenewRequest { csr_der: key.csr_der.clone() };
        let answer = BootstrapClient::new(channel).issue_local(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    }

    async fn cluster_name(&self) -> Option<String> {
        let channel = dial::local(&self.config.control_socket()).await.ok()?;
        let answer = ControlClient::new(channel).get_cluster(pb::Empty {}).await.ok()?;
        Some(answer.into_inner().name)
    }

    fn store_certificate(
        &self,
        key: NewKey,
        certificate: &pb::Certificate,
        data_addr: IpAddr,
    ) -> Result<Record, ApiError> {
        let record = Record::new(certificate, data_addr)
            .map_err(|error| internal("the manager's answer can't be used", &error))?;
        let identity = Identity {
            key_der: key.key_der,
            cert_der: certificate.cert_der.clone(),
            ca_der: certificate.ca_der.clone(),
        };
        identity
            .store(&self.config.pki_dir())
            .map_err(|error| internal("cannot keep the node's certificate", &error))?;
        Ok(record)
    }

    fn activate(&self, record: Record, supervisor: Option<Supervisor>) -> Result<Member, ApiError> {
        Member::start(&self.config, &self.stats, &self.runtime, record, supervisor).map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("cannot start as a member: {error:#}"))
        })
    }

    async fn init_reply(&self, advertise: SocketAddr) -> Result<pb::InitReply, Status> {
        let channel = dial::local(&self.config.control_socket())
            .await
            .map_err(|error| failed(ErrorCode::NoLeader, "cannot talk to the manager", &error))?;
        let request = pb::CreateTokenRequest {
            role: pb::NodeRole::Worker.into(),
            ttl_ms: 0,
            uses: FIRST_TOKEN_USES,
            request_id: request_id(),
        };
        let secret = ControlClient::new(channel).create_token(request).await?.into_inner();
        let info = secret.info.unwrap_or_default();
        Ok(pb::InitReply {
            node: Some(self.info()),
            worker_token: secret.token,
            join_addr: advertise.to_string(),
            token_expires_at_ms: info.expires_at_ms,
            token_uses: info.uses_left.unwrap_or_default(),
        })
    }

    /// Joins the swarm that a token belongs to.
    pub async fn join(&self, request: pb::LocalJoinRequest) -> Result<pb::LocalNode, Status> {
        let mut slot = self.member.lock().await;
        not_member_yet(slot.as_ref())?;
        let token: Token = request.token.parse().map_err(|error: shoal_types::token::TokenError| {
            ApiError::new(ErrorCode::TokenMalformed, error.to_string())
                .with_help("make a new one on a manager: shoal swarm token create")
        })?;
        let data_addr = self.joining_address(&request, &uplinks().await?)?;
        let trial = preflight(&self.config).await?;
        self.set_membership(pb::Membership::Joining);
        match self.join_with(&request, &token, data_addr).await {
            Ok(member) => {
                trial.keep();
                self.become_member(&member);
                let programmed = member.wait_programmed(FIRST_PASS).await;
                member.learn_cluster_name(&self.config);
                self.record.store(Some(member.record()));
                *slot = Some(member);
                if programmed {
                    Ok(self.info())
                } else {
                    Err(ApiError::new(ErrorCode::Timeout, "joined, but not programmed yet")
                        .with_help("it goes on in the background; see 'shoal status'")
                        .into())
                }
            }
            Err(error) => {
                self.set_membership(pb::Membership::None);
                self.forget_files();
                Err(error)
            }
        }
    }

    /// The address of the overlay that a request or the settings name. A worker has no other, and listens on no port.
    fn joining_address(
        &self,
        request: &pb::LocalJoinRequest,
        uplinks: &[Uplink],
    ) -> Result<Option<IpAddr>, ApiError> {
        let named = |field: &str, text: &str, why: &str| {
            let text = Some(text).filter(|text| !text.is_empty());
            text.map(|text| address::resolve_bare(field, Some(text), uplinks, why)).transpose()
        };
        let of_swarm = "the overlay has the port that the swarm was made with";
        let data_path = named("data-path-addr", &request.data_path, of_swarm)?;
        let advertise = named("advertise-addr", &request.advertise, "a worker listens on none")?;
        if let Some(ip) = data_path.or(advertise) {
            return Ok(Some(ip));
        }
        let config = &self.config;
        if let Some(ip) = named("data-path-addr", config.data_path.as_deref().unwrap_or_default(), of_swarm)?
        {
            return Ok(Some(ip));
        }
        // This setting's port is for when the host has a manager.
        let text = config.advertise.as_deref();
        text.map(|text| address::resolve("advertise-addr", Some(text), uplinks).map(|found| found.0))
            .transpose()
    }

    async fn join_with(
        &self,
        request: &pb::LocalJoinRequest,
        token: &Token,
        data_addr: Option<IpAddr>,
    ) -> Result<Member, Status> {
        let mut addresses = Vec::new();
        for text in &request.managers {
            addresses.extend(address::manager(text).await?);
        }
        let key = NewKey::generate().map_err(|error| internal("cannot make a key", &error))?;
        let verifier = Arc::new(PinnedVerifier::new(token.ca_digest));
        let config = joining_config(Arc::clone(&verifier)).map_err(|error| internal("no TLS", &error))?;
        let mut last = ApiError::new(ErrorCode::InvalidField, "no manager was named")
            .with_help("give the address that 'shoal swarm init' printed");
        for manager in addresses {
            let stream = match dial::tls(manager, Arc::clone(&config)).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = unreachable(manager, &verifier, &error);
                    continue;
                }
            };
            // The way to the manager is the way to its network: a good guess for the overlay.
            let local = stream.get_ref().0.local_addr().map(|address| address.ip().to_canonical());
            let data_addr = match data_addr {
                Some(ip) => ip,
                None => local.map_err(|error| internal("cannot tell the own address", &error))?,
            };
            let channel =
                dial::over(stream).await.map_err(|error| internal("cannot talk to the manager", &error))?;
            let join = pb::JoinRequest {
                token_id: token.id.to_string(),
                secret: token.secret.to_vec(),
                csr_der: key.csr_der.clone(),
                hostname: self.config.name.to_string(),
                data_addr: data_addr.to_string(),
                request_id: request_id(),
            };
            let certificate = CaClient::new(channel).join(join).await?.into_inner();
            let mut record = self.store_certificate(key, &certificate, data_addr)?;
            if record.managers.is_empty() {
                record.managers.push(manager);
            }
            record.store(&self.config).map_err(|error| internal("cannot keep the membership", &error))?;
            return Ok(self.activate(record, None)?);
        }
        Err(last.into())
    }

    /// The arguments of every start of the manager.
    fn control_args(&self, advertise: SocketAddr, data_addr: IpAddr) -> Vec<String> {
        let mut listen = self.config.listen.address;
        listen.set_port(advertise.port());
        let no_v6 = listen.is_ipv6() && !PathBuf::from("/proc/net/if_inet6").exists();
        if no_v6 {
            listen.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
        }
        [
            ("--state-dir", self.config.state_dir.join("control").display().to_string()),
            ("--socket", self.config.control_socket().display().to_string()),
            ("--listen", listen.to_string()),
            ("--advertise", advertise.to_string()),
            ("--data-addr", data_addr.to_string()),
            ("--suspect-after-ms", self.config.suspect_after.as_millis().to_string()),
            ("--down-after-ms", self.config.down_after.as_millis().to_string()),
            ("--log", self.config.log.clone()),
            ("--log-format", self.config.log_format.as_str().to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    /// Starts the manager of a member, where the others know it.
    pub(super) fn start_control(&self, record: &Record) -> anyhow::Result<Supervisor> {
        let known = record.advertise.unwrap_or_else(|| SocketAddr::new(record.data_addr, CONTROL_PORT));
        let listen = self.config.listen;
        let checked = |listen| address::advertised(known.ip(), Some(known.port()), listen);
        if let Err(error) = checked(Listen { is_set: false, ..listen }) {
            anyhow::bail!("{}; the swarm knows it by that address: {}", error.message, error.help);
        }
        // The port it is known by is the one that is listened on.
        if let Err(error) = checked(listen) {
            tracing::warn!(
                "{}; the swarm knows it by that address, where it goes on: {}",
                error.message,
                error.help
            );
        }
        Ok(self.start_control_with(self.control_args(known, record.data_addr), Vec::new())?)
    }

    fn start_control_with(
        &self,
        args: Vec<String>,
        bootstrap: Vec<String>,
    ) -> Result<Supervisor, supervisor::SupervisorError> {
        supervisor::prepare(&self.config)?;
        let pid_file = self.config.run_dir.join("control.pid");
        supervisor::end_stale(&pid_file)?;
        let later = ControlArgs { args: args.clone(), pid_file: pid_file.clone() };
        let first = ControlArgs { args: [args, bootstrap].concat(), pid_file };
        Supervisor::start(first, later)
    }

    /// Forgets the swarm on disk.
    pub(super) fn forget_files(&self) {
        let results = [
            Record::forget(&self.config),
            durable::remove_dir(&self.config.pki_dir()),
            durable::remove_dir(&self.config.agent_dir()),
            durable::remove_dir(&self.config.state_dir.join("control")),
            durable::remove_dir(&self.config.run_dir.join("control")),
            durable::remove(&self.config.run_dir.join("control.pid")),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(error = chain(&error), "a file of the swarm is left");
        }
        self.record.store(None);
        // What could not be written of it need not be any more.
        self.stats.unkept.clear();
    }
}

fn unreachable(manager: SocketAddr, verifier: &PinnedVerifier, error: &std::io::Error) -> ApiError {
    if verifier.met_other_ca() {
        return ApiError::new(
            ErrorCode::CaMismatch,
            format!("{manager} belongs to another swarm: its CA is not the one that the token names"),
        )
        .with_help(
            "check the address, or make a token on a manager of that swarm: shoal swarm token create",
        );
    }
    ApiError::new(ErrorCode::NoLeader, format!("cannot reach a manager at {manager}: {error}"))
        .with_help("check the address, and that a firewall lets TCP to that port through")
}
