//! Runs the command of `serve -- COMMAND`, with the variables set.

use std::ffi::OsString;
use std::net::SocketAddr;

use tokio::process::Command;

use super::environment::{variables, with_no_proxy};
use crate::error::{Cause, Error, Result, plain_io, printable};
use crate::platform::{self, Interruption};

/// Runs the command and returns its exit code: 128 plus the signal number if a signal killed it, as in shells.
///
/// # Errors
/// If it cannot be started.
pub async fn run(
    words: &[OsString],
    listen: SocketAddr,
    token: Option<&str>,
    interruption: &mut Interruption,
) -> Result<u8> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).kill_on_drop(true);
    for variable in variables(listen) {
        match variable.name {
            "NO_PROXY" => {
                // Some programs read only one of the two.
                for name in ["NO_PROXY", "no_proxy"] {
                    let set = std::env::var(name).ok();
                    command.env(name, with_no_proxy(set.as_deref(), &variable.value));
                }
            }
            name => drop(command.env(name, variable.value)),
        }
    }
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    let mut child = command.spawn().map_err(|error| {
        let name = printable(&words[0].to_string_lossy(), 200);
        let cause = match error.kind() {
            std::io::ErrorKind::NotFound => Cause::NotFound,
            std::io::ErrorKind::PermissionDenied => Cause::Permission,
            _ => Cause::Other,
        };
        Error::new(cause, format!("cannot run '{name}'")).because(plain_io(&error))
    })?;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_err(|error| Error::failed("cannot wait for the command").because(plain_io(&error)))?;
                return Ok(platform::exit_code(status));
            }
            is_terminate = interruption.next_is_terminate() => if let Some(id) = child.id() {
                platform::pass_on(id, is_terminate);
            },
        }
    }
}
