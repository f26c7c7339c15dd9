//! Health checks of a service's tasks.

use clap::Args;
use shoal_api::pb;

use crate::parse;

/// Settings that create and update share. Absent: as it was; a new check begins with docker's times.
#[derive(Debug, Clone, Default, Args)]
#[expect(clippy::struct_field_names, reason = "the names of the flags")]
pub(crate) struct HealthFlags {
    /// Command for /bin/sh in the task, as the task's user; exit code 0 is healthy
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["health_http", "health_tcp"])]
    pub(crate) health_cmd: Option<String>,
    /// What a GET from inside the task's network is sent to, as in 8080/healthz; a status of 200 to 399 is healthy
    #[arg(long, value_name = "PORT[/PATH]|URL", value_parser = parse::health_http, conflicts_with = "health_tcp")]
    pub(crate) health_http: Option<pb::HealthHttp>,
    /// Port, or address and port, that takes a connection from inside the task's network when it is healthy
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse::health_target)]
    pub(crate) health_tcp: Option<String>,
    /// Time between two checks (default: 30s)
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) health_interval: Option<u64>,
    /// A check that takes longer has failed (default: 30s)
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) health_timeout: Option<u64>,
    /// Failed checks in a row that make a task unhealthy (default: 3)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) health_retries: Option<u32>,
    /// Time after the start in which failed checks don't count (default: 0s)
    #[arg(long, value_name = "TIME", value_parser = parse::millis)]
    pub(crate) health_start_period: Option<u64>,
}

impl HealthFlags {
    /// What is to be asked, when that is given.
    pub(crate) fn probe(&self) -> Option<pb::health_check::Probe> {
        use pb::health_check::Probe;
        let shell = |text: &String| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()];
        let command =
            self.health_cmd.as_ref().map(|text| Probe::Command(pb::HealthCommand { words: shell(text) }));
        let http = self.health_http.clone().map(Probe::Http);
        let tcp = self.health_tcp.clone().map(Probe::Tcp);
        command.or(http).or(tcp)
    }

    /// Whether times or counts are given.
    pub(crate) fn has_details(&self) -> bool {
        self.health_interval.is_some()
            || self.health_timeout.is_some()
            || self.health_retries.is_some()
            || self.health_start_period.is_some()
    }
}
