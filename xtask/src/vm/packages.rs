//! What a guest is made of, from Debian's packages, unpacked below `target/vm` and never installed: a host keeps the
//! kernel and the programs that it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use shoal_netns::Run;

/// Packages that are unpacked into one directory, with what they depend on and the host lacks.
pub(super) struct Bundle<'a> {
    /// The directory below `target/vm`.
    pub(super) name: &'a str,
    /// The packages.
    pub(super) packages: &'a [&'a str],
    /// Whether a package stands for the one it depends on: Debian's names for "the newest kernel".
    pub(super) newest: bool,
}

/// The directory of an unpacked bundle, made on first use.
pub(super) fn ensure_unpacked(base: &Path, bundle: &Bundle<'_>) -> anyhow::Result<PathBuf> {
    let place = base.join(bundle.name);
    if place.exists() {
        return Ok(place);
    }
    say(&format!("getting {} from Debian into {}", bundle.packages.join(", "), place.display()));
    let unfinished = base.join(format!("{}.part", bundle.name));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let got = match get(&unfinished, bundle) {
        Ok(()) => Ok(()),
        // The lists may never have been read on this machine, or name versions that are gone.
        Err(_) => Run::line("apt-get update -q").stdout().and_then(|_| {
            fs::remove_dir_all(&unfinished)?;
            get(&unfinished, bundle)
        }),
    };
    got.with_context(|| format!("can't get the Debian packages {}", bundle.packages.join(", ")))?;
    fs::rename(&unfinished, &place)?;
    Ok(place)
}

fn get(place: &Path, bundle: &Bundle<'_>) -> anyhow::Result<()> {
    let downloads = place.join("packages");
    fs::create_dir_all(&downloads)?;
    // The layout where /bin is /usr/bin, so that a package of either age lands in one.
    for directory in ["bin", "sbin", "lib"] {
        fs::create_dir_all(place.join("usr").join(directory))?;
        std::os::unix::fs::symlink(format!("usr/{directory}"), place.join(directory))?;
    }
    let mut names = Vec::new();
    for package in bundle.packages {
        names.push(if bundle.newest { newest(package)? } else { (*package).to_owned() });
    }
    if !bundle.newest {
        let simulated =
            Run::line("apt-get install --simulate --no-install-recommends").args(&names).stdout()?;
        names.extend(missing(&simulated).filter(|name| !bundle.packages.contains(name)).map(str::to_owned));
    }
    download(&downloads, &names)?;
    for file in fs::read_dir(&downloads)? {
        unpack(&file?.path(), place)?;
    }
    fs::remove_dir_all(&downloads)?;
    for directory in ["bin", "sbin"] {
        keep_links_inside(&place.join("usr").join(directory))?;
    }
    Ok(())
}

/// A program that is a link to `/bin/kmod` means the unpacked one: the host may have none.
fn keep_links_inside(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        if let Ok(below_root) = target.strip_prefix("/") {
            fs::remove_file(&path)?;
            std::os::unix::fs::symlink(Path::new("../..").join(below_root), &path)?;
        }
    }
    Ok(())
}

/// The package that a name for "the newest one" stands for.
fn newest(package: &str) -> anyhow::Result<String> {
    let text = Run::line("apt-cache depends").args([package]).stdout()?;
    dependency(&text).map(str::to_owned).with_context(|| format!("package {package} depends on no image"))
}

/// The first dependency in what `apt-cache depends` printed.
fn dependency(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// The packages that a simulated installation would bring.
fn missing(simulated: &str) -> impl Iterator<Item = &str> {
    simulated
        .lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|rest| rest.split_whitespace().next())
}

fn download(place: &Path, names: &[String]) -> anyhow::Result<()> {
    // apt's own user can't write here, and the files are checked against the signed lists in any case.
    let mut apt = Command::new("apt-get");
    apt.args(["download", "-q", "-o", "APT::Sandbox::User=root"]).args(names).current_dir(place);
    let output = apt.stdin(Stdio::null()).output().context("can't run apt-get")?;
    ensure!(
        output.status.success(),
        "apt-get download: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

fn unpack(package: &Path, place: &Path) -> anyhow::Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run dpkg-deb")?;
    let stream = archive.stdout.take().context("dpkg-deb's stdout")?;
    let tar = Command::new("tar")
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"])
        .arg(place)
        .stdin(stream)
        .status()
        .context("can't run tar")?;
    if !archive.wait()?.success() || !tar.success() {
        bail!("can't unpack {}", package.display());
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a command line tool reports to its terminal")]
fn say(line: &str) {
    eprintln!("vm: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_dependency_of_its_name() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Recommends: x\n";
        assert_eq!(dependency(text), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn links_stay_inside_what_was_unpacked() {
        let place = std::env::temp_dir().join(format!("shoal-vm-links-{}", std::process::id()));
        let directory = place.join("usr/sbin");
        fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::symlink("/bin/kmod", directory.join("modprobe")).unwrap();
        std::os::unix::fs::symlink("modprobe", directory.join("other")).unwrap();
        keep_links_inside(&directory).unwrap();
        assert_eq!(fs::read_link(directory.join("modprobe")).unwrap(), Path::new("../../bin/kmod"));
        assert_eq!(fs::read_link(directory.join("other")).unwrap(), Path::new("modprobe"));
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn only_what_would_be_installed_is_missing() {
        let text =
            "Remv old [1]\nInst kmod (30 Debian:12 [amd64])\nInst libnl-3-200 (3.7 Debian)\nConf kmod (30)\n";
        assert_eq!(missing(text).collect::<Vec<_>>(), ["kmod", "libnl-3-200"]);
    }
}
