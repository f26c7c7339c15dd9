//! The kernel's table of virtual services, as narrow as the driver needs it, and what can go wrong with it.

use std::fmt;
use std::io;

use super::model::{
    Destination, DestinationKey, DestinationStatus, Info, Service, ServiceKey, ServiceStatus, Timeouts,
};
use super::wire::WireError;
use crate::netns::NetnsError;

/// A thing in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A service.
    Service(ServiceKey),
    /// A destination of a service.
    Destination(ServiceKey, DestinationKey),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "IPVS service {key}"),
            Self::Destination(key, destination) => {
                write!(f, "destination {destination} of IPVS service {key}")
            }
        }
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has no IPVS.
    #[error("this kernel has no IPVS: load the module ip_vs, or use the engine ebpf")]
    ModuleMissing,
    /// The kernel has no such scheduler.
    #[error("no scheduler '{scheduler}' for IPVS service {service}: load the module ip_vs_{scheduler}")]
    SchedulerMissing {
        /// Its name.
        scheduler: String,
        /// The service that wants it.
        service: ServiceKey,
    },
    /// It is there already.
    #[error("{0} exists already")]
    Exists(Object),
    /// It is not there.
    #[error("{0} does not exist")]
    NotFound(Object),
    /// The kernel refused for another reason.
    #[error("cannot {action}")]
    Refused {
        /// What was being done to what.
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket failed.
    #[error("the netlink socket failed to {action}")]
    Socket {
        /// What it was to do.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The table changed under every attempt to read it.
    #[error("cannot {action}: the table changed under each of {attempts} attempts")]
    Interrupted {
        /// What was being done to what.
        action: String,
        /// How often.
        attempts: u32,
    },
    /// The kernel answered something that makes no sense.
    #[error("the kernel's answer makes no sense")]
    Malformed(#[from] WireError),
    /// A namespace could not be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

impl IpvsError {
    /// Whether trying again later may help without anybody doing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            // Somebody else was faster: what is there now is compared in the next pass.
            Self::Exists(_) | Self::NotFound(_) | Self::Interrupted { .. } | Self::Socket { .. } => true,
            Self::ModuleMissing | Self::SchedulerMissing { .. } | Self::Malformed(_) => false,
            Self::Refused { source, .. } => {
                !matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ERANGE | libc::EPERM))
            }
            Self::Netns(error) => error.is_retryable(),
        }
    }
}

/// The table of one network namespace. Calls take microseconds and block for them.
pub trait IpvsTable {
    /// All services.
    fn services(&mut self) -> Result<Vec<ServiceStatus>, IpvsError>;
    /// One service, if it is there.
    fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceStatus>, IpvsError>;
    /// The destinations of a service; none if it is not there.
    fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationStatus>, IpvsError>;
    /// Makes a service. [`IpvsError::Exists`] if it is there.
    fn create_service(&mut self, service: &Service) -> Result<(), IpvsError>;
    /// Changes a service. [`IpvsError::NotFound`] if it is not there.
    fn change_service(&mut self, service: &Service) -> Result<(), IpvsError>;
    /// Removes a service with its destinations. [`IpvsError::NotFound`] if it is not there.
    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), IpvsError>;
    /// Makes a destination. [`IpvsError::Exists`] if it is there.
    fn create_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError>;
    /// Makes several destinations; a result for each. Fails as a whole if the table can't be written to at all.
    fn create_destinations(
        &mut self,
        key: &ServiceKey,
        destinations: &[&Destination],
    ) -> Result<Vec<Result<(), IpvsError>>, IpvsError> {
        Ok(destinations.iter().map(|destination| self.create_destination(key, destination)).collect())
    }
    /// Changes a destination. [`IpvsError::NotFound`], naming which, if it or the service is not there.
    fn change_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError>;
    /// Removes a destination; connections to it end. [`IpvsError::NotFound`], naming which, as above.
    fn delete_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), IpvsError>;
    /// The time-outs of connections.
    fn timeouts(&mut self) -> Result<Timeouts, IpvsError>;
    /// Sets the time-outs; those that are zero stay.
    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), IpvsError>;
    /// Version and table size.
    fn info(&mut self) -> Result<Info, IpvsError>;
}
