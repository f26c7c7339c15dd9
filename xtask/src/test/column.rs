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
            (Self::Host | Self::Uml, _) => Duration::from_mins(30),
            (_, Form::Default) => Duration::from_mins(40),
            (_, Form::Long) => Duration::from_mins(90),
        }
    }
}

impl Column {
    pub(super) const HOST: Self = Self { kernel: Kernel::Host, engine: Engine::Ebpf };

    /// The columns that guests fill, those that take longest first.
    pub(super) fn of_guests(form: Form) -> Vec<Self> {
        let kernels: &[Kernel] = match form {
            Form::Default => &[Kernel::Qemu6_12, Kernel::Uml],
            Form::Long => &[Kernel::Qemu6_12, Kernel::Qemu6_1, Kernel::Uml],
        };
        // Engine ipvs has a group more.
        let engines = [Engine::Ipvs, Engine::Ebpf];
        kernels.iter().flat_map(|&kernel| engines.map(|engine| Self { kernel, engine })).collect()
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
