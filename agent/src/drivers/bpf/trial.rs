//! Loading the programs to see whether they load.

use super::{BpfConfig, BpfDriver, BpfError, Opened};

/// A data plane that is loaded and attached nowhere. Whoever goes on with it keeps it, and adopts it by opening it: having
/// it verified takes the kernel seconds, and once is enough. Otherwise it goes with this, unless it was there before.
#[derive(Debug)]
pub struct Trial {
    config: BpfConfig,
    is_new: bool,
}

impl Trial {
    /// Loads it.
    pub fn load(config: BpfConfig) -> Result<Self, BpfError> {
        let (_, opened) = BpfDriver::open(&config)?;
        Ok(Self { config, is_new: opened != Opened::Adopted })
    }

    /// Leaves it to whoever opens it next.
    pub fn keep(mut self) {
        self.is_new = false;
    }

    /// Takes it away again.
    pub fn end(mut self) -> Result<(), BpfError> {
        self.take_away()
    }

    fn take_away(&mut self) -> Result<(), BpfError> {
        if !std::mem::take(&mut self.is_new) {
            return Ok(());
        }
        let (driver, _) = BpfDriver::open(&self.config)?;
        driver.remove_all()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = self.take_away() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "programs stay that nothing uses; 'shoald cleanup' removes them");
        }
    }
}
