//! Small file systems for single tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system. It is unmounted on drop.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts a tmpfs with these options.
    #[track_caller]
    pub fn new(at: &Path, options: &str) -> Mount {
        std::fs::create_dir_all(at).unwrap();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], at);
        Mount(at.to_path_buf())
    }

    /// Mounts a new file system of this type and size from a file, with a loop device. Only root can do that, if the system
    /// has the tools; `None` otherwise.
    pub fn image(at: &Path, kind: &str, mib: u64) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        // The file exists as long as it is mounted.
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        let is_done = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let is_made = is_done(Command::new(format!("mkfs.{kind}")).arg("-q").arg(file.path()));
        let is_mounted = is_made && is_done(Command::new("mount").args(["-o", "loop"]).arg(file.path()).arg(at));
        is_mounted.then(|| Mount(at.to_path_buf()))
    }

    /// Covers a folder with a read-only view of itself, as after a disk error. Files that are open stay writable.
    #[track_caller]
    pub fn read_only(at: &Path) -> Mount {
        // In a place that is not written to meanwhile.
        let aside = tempfile::tempdir().unwrap();
        let view = Mount(aside.path().to_path_buf());
        mount(&["--bind", &at.display().to_string()], aside.path());
        mount(&["-o", "remount,bind,ro"], aside.path());
        mount(&["--bind", &aside.path().display().to_string()], at);
        drop(view);
        Mount(at.to_path_buf())
    }
}

#[track_caller]
fn mount(options: &[&str], at: &Path) {
    let output = Command::new("mount").args(options).arg(at).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Runs a test that mounts file systems. For a user who may not mount, it runs in a separate namespace, in another process
/// of this test binary. If that is impossible as well, the test is skipped, and says so.
pub fn with_mounts(name: &str, test: impl FnOnce()) {
    const INSIDE: &str = "HF_CACHE_SYNC_TEST_IN_NAMESPACE";
    let probe = tempfile::tempdir().unwrap();
    let may_mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(probe.path()).output();
    if may_mount.is_ok_and(|output| output.status.success()) {
        drop(Mount(probe.path().to_path_buf()));
        return test();
    }
    assert!(std::env::var_os(INSIDE).is_none(), "mounting fails even in a namespace");
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        return super::skip(name, "this user may neither mount a file system nor create a namespace");
    }
    let mut again = Command::new("unshare");
    again.arg("-rm").arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
