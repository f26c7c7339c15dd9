//! The kernels of the guests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use shoal_netns::Run;

use super::cpio::Archive;
use super::packages::{Bundle, ensure_unpacked};

/// A Debian kernel that QEMU boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Version {
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "6.1")]
    V6_1,
}

impl Version {
    fn bundle(self) -> Bundle<'static> {
        let (name, packages): (_, &[_]) = match self {
            Self::V6_12 => ("linux-6.12", &["linux-image-6.12-cloud-amd64"]),
            Self::V6_1 => ("linux-6.1", &["linux-image-cloud-amd64"]),
        };
        Bundle { name, packages, newest: true }
    }
}

/// A kernel that is ready to boot.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// Holds a directory of modules named by the kernel's release.
    pub(super) modules: PathBuf,
    /// Present if the kernel can't mount its root without modules.
    pub(super) initramfs: Option<PathBuf>,
    /// A library that user-mode Linux is started with.
    pub(super) preload: Option<PathBuf>,
}

/// Programs that every guest gets beside the host's: loading modules, switching off, looking at IPVS.
pub(super) const TOOLS: Bundle<'_> =
    Bundle { name: "tools", packages: &["kmod", "busybox-static", "ipvsadm"], newest: false };
const UML: Bundle<'_> = Bundle { name: "uml", packages: &["user-mode-linux"], newest: false };
const REGISTERS: &str = include_str!("regset.c");
/// What mounts the root of a guest in QEMU.
const ROOT_MODULES: [&str; 2] = ["virtio_pci", "virtiofs"];

pub(super) fn user_mode(base: &Path, tools: &Path) -> anyhow::Result<Kernel> {
    let place = ensure_unpacked(base, &UML)?;
    let modules = place.join("usr/lib/modules");
    if !modules.exists() {
        fs::rename(place.join("usr/lib/uml/modules"), &modules).context("modules of user-mode-linux")?;
    }
    index_modules(&place, &release(&modules)?, tools)?;
    let preload = Some(registers_library(&place)?);
    Ok(Kernel { image: place.join("usr/bin/linux.uml"), modules, initramfs: None, preload })
}

/// What lets user-mode Linux run on a CPU with more registers than it knows.
fn registers_library(place: &Path) -> anyhow::Result<PathBuf> {
    let source = place.join("regset.c");
    fs::write(&source, REGISTERS)?;
    let library = place.join("regset.so");
    let unfinished = place.join("regset.part");
    Run::line("cc -O2 -shared -fPIC -o")
        .args([&unfinished, &source])
        .stdout()
        .context("user-mode Linux needs a C compiler (package gcc, libc6-dev)")?;
    fs::rename(&unfinished, &library)?;
    Ok(library)
}

pub(super) fn debian(base: &Path, version: Version, tools: &Path) -> anyhow::Result<Kernel> {
    let place = ensure_unpacked(base, &version.bundle())?;
    let modules = place.join("usr/lib/modules");
    let release = release(&modules)?;
    index_modules(&place, &release, tools)?;
    let boot = place.join("boot");
    let config = fs::read_to_string(boot.join(format!("config-{release}"))).context("the kernel's config")?;
    let initramfs = if config.lines().any(|line| line == "CONFIG_VIRTIO_FS=y") {
        None
    } else {
        let file = boot.join("shoal-initramfs");
        // Another guest may be reading the one there is.
        let unfinished = boot.join("shoal-initramfs.part");
        fs::write(&unfinished, initramfs(&modules.join(&release), tools)?)?;
        fs::rename(&unfinished, &file)?;
        Some(file)
    };
    Ok(Kernel { image: boot.join(format!("vmlinuz-{release}")), modules, initramfs, preload: None })
}

/// The only release below a directory of modules.
fn release(modules: &Path) -> anyhow::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(modules).with_context(|| format!("no modules in {}", modules.display()))? {
        names.extend(entry?.file_name().into_string());
    }
    match &names[..] {
        [name] => Ok(name.clone()),
        _ => bail!("{} should hold one kernel release, not {names:?}", modules.display()),
    }
}

/// Installing a kernel writes the index that modprobe reads; unpacking one doesn't.
fn index_modules(place: &Path, release: &str, tools: &Path) -> anyhow::Result<()> {
    if place.join("usr/lib/modules").join(release).join("modules.dep").exists() {
        return Ok(());
    }
    Run::new(tools.join("usr/sbin/depmod"))
        .env("LD_LIBRARY_PATH", tools.join("usr/lib/x86_64-linux-gnu"))
        .args(["-b".as_ref(), place.as_os_str(), release.as_ref()])
        .stdout()
        .map(drop)
}

/// Loads what the root takes, mounts it and goes on there.
fn initramfs(modules: &Path, tools: &Path) -> anyhow::Result<Vec<u8>> {
    let index = fs::read_to_string(modules.join("modules.dep")).context("modules.dep")?;
    let mut archive = Archive::default();
    for directory in ["bin", "m", "proc", "root"] {
        archive.directory(directory);
    }
    archive.program("bin/busybox", &fs::read(tools.join("usr/bin/busybox")).context("busybox")?);
    let mut init = "#!/bin/busybox sh\n".to_owned();
    for (number, file) in load_order(&index, &ROOT_MODULES)?.into_iter().enumerate() {
        archive.program(&format!("m/{number}"), &fs::read(modules.join(file)).context(file.to_owned())?);
        init.push_str("/bin/busybox insmod /m/");
        init.push_str(&number.to_string());
        init.push('\n');
    }
    init.push_str("/bin/busybox mount -t virtiofs shoalroot /root\n");
    init.push_str("exec /bin/busybox switch_root /root /media/ctl/init\n");
    archive.program("init", init.as_bytes());
    Ok(archive.finish())
}

/// The files of modules and of all that they need, each after what it needs.
fn load_order<'a>(index: &'a str, wanted: &[&str]) -> anyhow::Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for name in wanted {
        let line = index.lines().filter_map(|line| line.split_once(':'));
        let found = line.clone().find(|(file, _)| module_name(file) == *name);
        let (file, needs) = found.with_context(|| format!("no module {name} in modules.dep"))?;
        // The index names the deepest need last.
        for file in needs.split_whitespace().rev().chain([file]) {
            if Path::new(file).extension().is_none_or(|extension| extension != "ko") {
                bail!("{file} is compressed, which the first stage of the boot can't load");
            }
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

fn module_name(file: &str) -> &str {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split('.').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need_and_once() {
        let index = "k/virtio.ko: \nk/ring.ko: k/virtio.ko\n\
                     k/virtio_pci.ko: k/modern.ko k/ring.ko k/virtio.ko\nk/virtiofs.ko: k/fuse.ko k/ring.ko k/virtio.ko\n";
        let order = load_order(index, &["virtio_pci", "virtiofs"]).unwrap();
        assert_eq!(
            order,
            ["k/virtio.ko", "k/ring.ko", "k/modern.ko", "k/virtio_pci.ko", "k/fuse.ko", "k/virtiofs.ko"]
        );
    }

    #[test]
    fn a_module_that_is_not_there_or_compressed_is_named() {
        assert!(load_order("k/a.ko:\n", &["b"]).unwrap_err().to_string().contains("no module b"));
        assert!(load_order("k/a.ko.xz:\n", &["a"]).unwrap_err().to_string().contains("a.ko.xz"));
    }
}
