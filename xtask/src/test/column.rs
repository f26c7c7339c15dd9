//! The columns of the matrix: an engine on a kernel.

use std::time::Duration;

/// Where scenarios run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kernel {
    /// The machine's own.
    Host,
    Uml,
    Qemu6_12,
    Qemu6_1,
}

/// What balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Engine {
    Ebpf,
    Ipvs,
}

/// How much of the matrix is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Default,
    Long,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Column {
    pub(super) kernel: Kernel,
    pub(super) engine: Engine,
}

impl Engine {
    /// As the setting `network.lb_engine` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Ipvs => "ipvs",
        }
    }
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Uml => "uml-6.1",
            Self::Qemu6_12 => "qemu-6.12",
            Self::Qemu6_1 => "qemu-6.1",
        }
    }

    pub(super) fn is_emulated(self) -> bool {
        matches!(self, Self::Qemu6_12 | Self::Qemu6_1)
    }

    /// What `cargo xtask vm` boots it by; nothing for the machine's own.
    pub(super) fn vm_arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Host => None,
            Self::Uml => Some(&["uml", "--mem", "3G"]),
            Self::Qemu6_12 => Some(&["qemu", "--kernel", "6.12", "--mem", "3G"]),
            Self::Qemu6_1 => Some(&["qemu", "--kernel", "6.1", "--mem", "3G"]),
        }
    }

    /// When a guest is taken for hung.
    pub(super) fn time_limit(self, form: Form) -> Duration {
        match (self, form) {
            (Self::Host, _) => Duration::from_mins(30),
            (_, Form::Default) => Duration::from_mins(40),
            (_, Form::Long) => Duration::from_mins(90),
        }
    }
}

impl Column {
    pub(super) const HOST: Self = Self { kernel: Kernel::Host, engine: Engine::Ebpf };

    /// The columns that guests fill, in the order in which they are begun.
    pub(super) fn of_guests(form: Form) -> Vec<Self> {
        use Engine::{Ebpf, Ipvs};
        use Kernel::{Qemu6_1, Qemu6_12, Uml};
        let columns: &[_] = match form {
            // On two CPUs, one of which has them while the host's column runs on the other: the two that take longest after
            // each other, beside them the host's and the others. They end at about the same time.
            Form::Default => &[(Uml, Ebpf), (Qemu6_12, Ipvs), (Uml, Ipvs), (Qemu6_12, Ebpf)],
            // Those that take longest first; engine ipvs has a group more.
            Form::Long => &[
                (Qemu6_12, Ipvs),
                (Qemu6_12, Ebpf),
                (Qemu6_1, Ipvs),
                (Qemu6_1, Ebpf),
                (Uml, Ipvs),
                (Uml, Ebpf),
            ],
        };
        columns.iter().map(|&(kernel, engine)| Self { kernel, engine }).collect()
    }

    pub(super) fn name(self) -> String {
        format!("{}/{}", self.kernel.name(), self.engine.name())
    }

    /// A driver's tests, which run beside the scenarios of its engine.
    pub(super) fn driver(self) -> Option<&'static str> {
        match (self.kernel, self.engine) {
            // Its own tier runs it there.
            (Kernel::Host, _) => None,
            (_, Engine::Ebpf) => Some("bpf"),
            (_, Engine::Ipvs) => Some("ipvs"),
        }
    }
}
