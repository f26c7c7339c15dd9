//! `cargo xtask build-ebpf`: the eBPF object, and the toolchain it takes.
//!
//! Debian ships a rustc with a prebuilt `core` for the BPF target, which needs neither a nightly compiler nor
//! its sources; it is used (and installed) where it can be had. Elsewhere the way of aya's users is taken:
//! nightly, rust-src and `-Z build-std=core`.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"];

#[derive(Default, clap::Args)]
pub(crate) struct Args {
    /// Build even if nothing changed since the last object
    #[arg(long)]
    force: bool,
    /// Never install packages; fail and name what is missing
    #[arg(long)]
    no_install: bool,
}

/// Where things lie in the checkout.
struct Paths {
    ebpf: PathBuf,
    tools: PathBuf,
    build: PathBuf,
    object: PathBuf,
    stamp: PathBuf,
}

impl Paths {
    fn new() -> Result<Self> {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = xtask.parent().context("the xtask package has no parent directory")?;
        let target = root.join("target");
        Ok(Self {
            ebpf: root.join("ebpf"),
            tools: target.join("tools"),
            build: target.join("ebpf"),
            object: target.join("bpf/shoal-ebpf.o"),
            stamp: target.join("bpf/stamp"),
        })
    }
}

/// A compiler that can make BPF objects.
enum Toolchain {
    /// A stable rustc whose sysroot holds `core` for the BPF target.
    Prebuilt { rustc: PathBuf },
    /// A nightly with rust-src, which compiles `core` itself.
    Nightly,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = Paths::new()?;
    let fingerprint = fingerprint(&paths.ebpf)?;
    if !args.force && paths.object.exists() && stamp_matches(&paths.stamp, fingerprint) {
        return report(&paths.object, "up to date");
    }
    let toolchain = find_toolchain(args)?;
    let linker = find_linker(&paths, &toolchain)?;
    compile(&paths, &toolchain, &linker)?;
    let built = paths.build.join(TARGET).join("release/shoal-ebpf");
    let dir = paths.object.parent().context("the object has no directory")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::copy(&built, &paths.object).with_context(|| format!("copy {}", built.display()))?;
    // A first build may write ebpf/Cargo.lock, which belongs to the fingerprint.
    let fingerprint = self::fingerprint(&paths.ebpf)?;
    fs::write(&paths.stamp, fingerprint.to_string()).context("write the build stamp")?;
    report(&paths.object, "built")
}

#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn report(object: &Path, what: &str) -> Result<()> {
    let size = fs::metadata(object).context("read the object")?.len();
    eprintln!("{}: {what} ({size} bytes)", object.display());
    Ok(())
}

fn stamp_matches(stamp: &Path, fingerprint: u64) -> bool {
    fs::read_to_string(stamp).is_ok_and(|text| text == fingerprint.to_string())
}

/// A hash of everything the object is made of.
fn fingerprint(ebpf: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (TARGET, LINKER_VERSION).hash(&mut hasher);
    include_str!("build_ebpf.rs").hash(&mut hasher);
    let mut files = Vec::new();
    collect_files(ebpf, &mut files)?;
    files.sort();
    for file in files {
        file.hash(&mut hasher);
        fs::read(&file).with_context(|| format!("read {}", file.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn collect_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            if path.file_name() != Some(OsStr::new("target")) {
                collect_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml" || e == "lock") {
            files.push(path);
        }
    }
    Ok(())
}

fn find_toolchain(args: &Args) -> Result<Toolchain> {
    if let Some(found) = prebuilt() {
        return Ok(found);
    }
    if apt_has_packages() && !args.no_install {
        install_packages()?;
        return prebuilt().with_context(|| {
            format!(
                "{} are installed, but {DEBIAN_RUSTC} has no core for {TARGET}",
                DEBIAN_PACKAGES.join(", ")
            )
        });
    }
    if nightly_has_sources() {
        return Ok(Toolchain::Nightly);
    }
    bail!(
        "no compiler for {TARGET}: on Debian 12 or later run `apt-get install {}` as root; elsewhere \
         `rustup toolchain install nightly --component rust-src`",
        DEBIAN_PACKAGES.join(" ")
    )
}

fn prebuilt() -> Option<Toolchain> {
    let rustc = PathBuf::from(DEBIAN_RUSTC);
    if !rustc.exists() || !Path::new(LLVM_PREFIX).join("bin/llvm-config").exists() {
        return None;
    }
    let libraries = rustc_output(&rustc, &["--print", "target-libdir", "--target", TARGET])?;
    let has_core = fs::read_dir(libraries).ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("libcore-")
    });
    has_core.then_some(Toolchain::Prebuilt { rustc })
}

fn rustc_output(rustc: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(rustc).args(args).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn nightly_has_sources() -> bool {
    let Ok(output) = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output()
    else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists()
}

/// Whether apt knows the packages; its lists are refreshed once if it does not.
fn apt_has_packages() -> bool {
    let known = || {
        DEBIAN_PACKAGES.iter().all(|package| {
            let query = Command::new("apt-cache").args(["show", package]).stderr(Stdio::null()).output();
            query.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
        })
    };
    known() || (succeeds(Command::new("apt-get").args(["update", "-q"])) && known())
}

/// Lists may be known and old: what they name is gone from the archive then, and fresh ones help.
fn install_packages() -> Result<()> {
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt.args(["install", "-y", "-q", "--no-install-recommends"]).args(DEBIAN_PACKAGES);
        succeeds(&mut apt)
    };
    ensure!(
        install() || (succeeds(Command::new("apt-get").args(["update", "-q"])) && install()),
        "`apt-get install {}` failed; it needs root and the Debian security archive",
        DEBIAN_PACKAGES.join(" ")
    );
    Ok(())
}

fn find_linker(paths: &Paths, toolchain: &Toolchain) -> Result<PathBuf> {
    let linker = paths.tools.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    let mut install = cargo();
    if let Toolchain::Prebuilt { .. } = toolchain {
        install.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"]);
        install.args(["--no-default-features", "--features", "llvm-22"]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bin = Path::new(LLVM_PREFIX).join("bin");
        let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)))?;
        install.env("LLVM_PREFIX", LLVM_PREFIX).env("LLVM_SYS_221_PREFIX", LLVM_PREFIX).env("PATH", path);
    } else {
        install.args(["+nightly", "install", "bpf-linker", "--locked"]);
    }
    install.arg("--root").arg(&paths.tools);
    ensure!(succeeds(&mut install), "building bpf-linker failed; its output is above");
    Ok(linker)
}

fn compile(paths: &Paths, toolchain: &Toolchain, linker: &Path) -> Result<()> {
    let mut build = cargo();
    if let Toolchain::Nightly = toolchain {
        build.arg("+nightly");
    }
    build.args(["build", "--release", "--target", TARGET, "--target-dir"]).arg(&paths.build);
    if paths.ebpf.join("Cargo.lock").exists() {
        build.arg("--locked");
    }
    match toolchain {
        // The distribution's compiler is a stable one, and the BPF target wants unstable features.
        Toolchain::Prebuilt { rustc } => build.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
        Toolchain::Nightly => build.args(["-Z", "build-std=core"]),
    };
    let linker = linker.to_str().context("the path of bpf-linker is not UTF-8")?;
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", &format!("-Clinker={linker}")];
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).current_dir(&paths.ebpf);
    ensure!(succeeds(&mut build), "building the eBPF programs failed; the compiler's output is above");
    Ok(())
}

/// A cargo without the settings that the cargo running this task left in the environment.
fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"]
    {
        cargo.env_remove(name);
    }
    cargo.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET").env_remove("RUSTUP_TOOLCHAIN");
    cargo
}

fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}
