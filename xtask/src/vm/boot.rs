//! The command lines that boot a guest, and what the guest reads when it comes up.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::kernel::Kernel;

/// Variables of the host's environment that mean nothing, or something else, in the guest.
const NOT_PASSED: [&str; 8] = ["PWD", "OLDPWD", "SHLVL", "TMPDIR", "TERM", "HOME", "_", "LD_LIBRARY_PATH"];

/// What a guest is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
}

/// User-mode Linux on one CPU, changed into `root`. It is several processes, so it gets a process namespace that ends
/// with its first one.
pub(super) fn user_mode(kernel: &Kernel, machine: Machine, root: &Path, cpu: usize) -> Vec<OsString> {
    let mut proc_option = OsString::from("--mount-proc=");
    proc_option.push(root.join("proc"));
    let mut line: Vec<OsString> = vec!["setpriv".into(), "--pdeathsig".into(), "KILL".into()];
    line.extend(["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"].map(OsString::from));
    line.push(proc_option);
    line.extend(["--propagation", "private", "taskset", "--cpu-list"].map(OsString::from));
    line.push(cpu.to_string().into());
    line.extend(["chroot".into(), root.as_os_str().to_owned()]);
    line.extend(
        ["env", "-i", "HOME=/media/shm", "TMPDIR=/media/shm", "PATH=/usr/sbin:/usr/bin"].map(OsString::from),
    );
    if let Some(library) = &kernel.preload {
        let mut preload = OsString::from("LD_PRELOAD=");
        preload.push(library);
        line.push(preload);
    }
    line.push(kernel.image.as_os_str().to_owned());
    line.push(format!("mem={}M", machine.memory_mib).into());
    line.extend(
        [
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "init=/media/ctl/init",
            "uml_dir=/media/shm/",
            "umid=shoal",
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
            "quiet",
            "loglevel=4",
            "panic=-1",
        ]
        .map(OsString::from),
    );
    line
}

/// The server of the guest's root.
pub(super) fn root_server(program: &Path, root: &Path, socket: &Path) -> Vec<OsString> {
    let mut at = OsString::from("--socket-path=");
    at.push(socket);
    let mut source = OsString::from("source=");
    source.push(root);
    source.push(",cache=always,sandbox=chroot,no_posix_lock,xattr");
    let mut line: Vec<OsString> = vec!["setpriv".into(), "--pdeathsig".into(), "KILL".into()];
    line.extend([program.as_os_str().to_owned(), at, "-o".into(), source]);
    line
}

/// QEMU, emulating: hardware virtualisation within a virtual machine is not to be relied on.
pub(super) fn emulated(
    program: &Path,
    firmware: &[&Path],
    kernel: &Kernel,
    machine: Machine,
    socket: &Path,
) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["setpriv".into(), "--pdeathsig".into(), "KILL".into()];
    line.push(program.as_os_str().to_owned());
    for directory in firmware {
        line.extend(["-L".into(), directory.as_os_str().to_owned()]);
    }
    line.extend(
        ["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-nodefaults"]
            .map(OsString::from),
    );
    line.extend(
        ["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"].map(OsString::from),
    );
    line.extend(["-smp".into(), machine.cpus.to_string().into()]);
    line.extend(["-m".into(), format!("{}M", machine.memory_mib).into()]);
    line.extend(["-object".into(), memory_object(machine)]);
    line.extend(["-machine", "memory-backend=mem", "-chardev"].map(OsString::from));
    let mut chardev = OsString::from("socket,id=fs,path=");
    chardev.push(socket);
    line.extend([chardev, "-device".into()]);
    line.push("vhost-user-fs-pci,chardev=fs,tag=shoalroot,queue-size=1024".into());
    line.extend(["-device", "virtio-rng-pci", "-kernel"].map(OsString::from));
    line.push(kernel.image.as_os_str().to_owned());
    if let Some(initramfs) = &kernel.initramfs {
        line.extend(["-initrd".into(), initramfs.as_os_str().to_owned()]);
    }
    line.extend(["-append".into(), kernel_arguments().into()]);
    line
}

/// The guest's memory has to be shared with the server of its root.
fn memory_object(machine: Machine) -> OsString {
    format!("memory-backend-memfd,id=mem,size={}M,share=on", machine.memory_mib).into()
}

fn kernel_arguments() -> &'static str {
    "root=shoalroot rootfstype=virtiofs rw init=/media/ctl/init console=ttyS0 quiet loglevel=4 panic=-1 \
     mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on"
}

/// The script that the guest runs: directory, environment, command.
pub(super) fn command_script(
    directory: &Path,
    environment: impl Iterator<Item = (OsString, OsString)>,
    guest: &str,
    command: &[OsString],
) -> Vec<u8> {
    let mut script = b"cd ".to_vec();
    script.extend(quote(directory.as_os_str()));
    script.extend_from_slice(b" || exit 125\n");
    let own = [("TERM", "dumb"), ("HOME", "/root"), ("TMPDIR", "/tmp"), ("SHOAL_OUT", "/media/out")];
    let own = own.into_iter().chain([("SHOAL_GUEST", guest)]);
    let own = own.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    for (name, value) in environment.filter(|(name, _)| is_passed(name)).chain(own) {
        script.extend_from_slice(b"export ");
        script.extend_from_slice(name.as_bytes());
        script.push(b'=');
        script.extend(quote(&value));
        script.push(b'\n');
    }
    script.extend_from_slice(b"exec");
    for word in command {
        script.push(b' ');
        script.extend(quote(word));
    }
    script.push(b'\n');
    script
}

fn is_passed(name: &OsStr) -> bool {
    let mut bytes = name.as_bytes().iter();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    // A shell function in the environment has a name that no `export` takes.
    starts
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && !NOT_PASSED.iter().any(|not| name == *not)
}

/// A word as a shell reads it back.
fn quote(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const MACHINE: Machine = Machine { memory_mib: 512, cpus: 2 };

    fn kernel(initramfs: Option<&str>) -> Kernel {
        Kernel {
            image: "/k/linux".into(),
            modules: PathBuf::from("/k/modules"),
            initramfs: initramfs.map(PathBuf::from),
            preload: Some("/k/regset.so".into()),
        }
    }

    fn joined(line: &[OsString]) -> String {
        line.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn user_mode_linux_runs_on_one_cpu_below_its_root_and_dies_with_the_xtask() {
        let line = joined(&user_mode(&kernel(None), MACHINE, Path::new("/r"), 1));
        assert!(line.starts_with("setpriv --pdeathsig KILL unshare "), "{line}");
        assert!(line.contains(" --mount-proc=/r/proc "), "{line}");
        assert!(line.contains(" taskset --cpu-list 1 chroot /r env -i "), "{line}");
        assert!(line.contains(" LD_PRELOAD=/k/regset.so /k/linux mem=512M rootfstype=hostfs "), "{line}");
    }

    #[test]
    fn qemu_gets_its_root_by_socket_and_an_initramfs_only_if_there_is_one() {
        let qemu = Path::new("/q/qemu");
        let firmware = [Path::new("/q/firmware")];
        let line = joined(&emulated(qemu, &firmware, &kernel(None), MACHINE, Path::new("/s")));
        assert!(line.contains("/q/qemu -L /q/firmware -M q35 "), "{line}");
        assert!(line.contains(" -smp 2 -m 512M "), "{line}");
        assert!(line.contains(" socket,id=fs,path=/s "), "{line}");
        assert!(!line.contains("-initrd"), "{line}");
        let line = joined(&emulated(qemu, &firmware, &kernel(Some("/k/i")), MACHINE, Path::new("/s")));
        assert!(line.contains(" -kernel /k/linux -initrd /k/i -append root=shoalroot "), "{line}");
    }

    #[test]
    fn words_survive_the_shell() {
        let command =
            ["printf".into(), "%s|".into(), "it's".into(), "$HOME `x` \\ \"".into(), String::new().into()];
        let environment = [("A".into(), "1 '2'".into()), ("BASH_FUNC_f%%".into(), "()".into())];
        let script = command_script(Path::new("/"), environment.into_iter(), "uml", &command);
        let text = String::from_utf8(script.clone()).unwrap();
        assert!(text.contains("export A='1 '\\''2'\\'''\n"), "{text}");
        assert!(!text.contains("BASH_FUNC"), "{text}");
        let output = std::process::Command::new("bash").arg("-c").arg(text).output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "%s|it's|$HOME `x` \\ \"||".replacen("%s|", "", 1)
        );
    }

    #[test]
    fn the_guest_s_own_settings_win() {
        let environment = [("HOME".into(), "/home/me".into()), ("SHOAL_GUEST".into(), "none".into())];
        let script = command_script(Path::new("/"), environment.into_iter(), "qemu", &["sh".into()]);
        let text = String::from_utf8(script).unwrap();
        assert!(!text.contains("/home/me"), "{text}");
        assert!(text.rfind("SHOAL_GUEST='qemu'").unwrap() > text.find("SHOAL_GUEST='none'").unwrap());
    }
}
