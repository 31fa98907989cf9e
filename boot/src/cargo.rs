//! Runs cargo for what has a target of its own: the kernel and the ring-3 programs.
//!
//! Cargo's messages are held back while they are few and fast, so that an up-to-date build is silent, and shown live
//! from the moment a build takes longer than `PATIENCE`. Works inside `cargo run` and `cargo test` on the same
//! target directory: the outer cargo has given up its lock before it starts us.

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How long a build may stay silent.
const PATIENCE: Duration = Duration::from_millis(1500);

/// One `cargo build`.
#[derive(Debug, Clone)]
pub struct Build {
    what: String,
    arguments: Vec<OsString>,
}

/// An executable that cargo built or found up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// Name of the cargo target.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The folder of the workspace's Cargo.toml.
#[must_use]
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// A cargo command in the workspace root, free of what an outer cargo left in the environment.
///
/// The outer cargo's variables describe *its* package; inherited, they change the inner build's fingerprints or its
/// result. Its home, its target directory and the user's wishes (network, terminal, jobs) stay.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let from_outer = text == "CARGO" || text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_BIN_");
        let from_outer = from_outer
            || matches!(
                &*text,
                "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH" | "CARGO_CRATE_NAME"
            )
            || matches!(
                &*text,
                "CARGO_PRIMARY_PACKAGE" | "CARGO_TARGET_TMPDIR" | "CARGO_MANIFEST_LINKS"
            );
        if from_outer {
            command.env_remove(&name);
        }
    }
    command
}

impl Build {
    /// A build of package `package` for `target` in `profile`; `what` names it in messages.
    #[must_use]
    pub fn new(what: &str, package: &str, target: &str, profile: &str) -> Self {
        let arguments = [
            "build",
            "--package",
            package,
            "--target",
            target,
            "--profile",
            profile,
        ];
        Self {
            what: what.to_owned(),
            arguments: arguments.iter().map(OsString::from).collect(),
        }
    }

    /// A build of package `package` for the host in the dev profile; `what` names it in messages.
    #[must_use]
    pub fn for_host(what: &str, package: &str) -> Self {
        let arguments = ["build", "--package", package];
        Self {
            what: what.to_owned(),
            arguments: arguments.iter().map(OsString::from).collect(),
        }
    }

    /// Switches a cargo feature on.
    #[must_use]
    pub fn feature(mut self, feature: &str) -> Self {
        self.arguments.extend(["--features".into(), feature.into()]);
        self
    }

    /// Builds, and returns every executable of the package.
    ///
    /// # Errors
    /// [`Error::Build`] when cargo fails; its messages have then been shown or are inside.
    pub fn run(&self) -> Result<Vec<Executable>> {
        let mut command = command();
        command
            .args(&self.arguments)
            .arg("--message-format=json-render-diagnostics");
        if io::stderr().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io("start cargo"))?;
        let messages = Messages::watch(child.stderr.take());
        let executables = child.stdout.take().map(executables).transpose();
        let status = child.wait().map_err(Error::io("wait for cargo"))?;
        let output = messages.finish();
        if !status.success() {
            return Err(Error::Build {
                what: self.what.clone(),
                output,
            });
        }
        executables
            .map(Option::unwrap_or_default)
            .map_err(Error::io("read cargo's answer"))
    }
}

/// Picks the executables out of cargo's JSON lines.
fn executables(stream: impl Read) -> io::Result<Vec<Executable>> {
    let mut found = Vec::new();
    for line in BufReader::new(stream).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line?) else {
            continue;
        };
        let name = message["target"]["name"].as_str();
        if let (Some(path), Some(name)) = (message["executable"].as_str(), name) {
            found.push(Executable {
                name: name.to_owned(),
                path: path.into(),
            });
        }
    }
    Ok(found)
}

/// Cargo's standard error: kept, or shown live once the build is slow.
struct Messages {
    held: Arc<Mutex<Held>>,
    reader: Option<thread::JoinHandle<()>>,
}

struct Held {
    bytes: Vec<u8>,
    live: bool,
    ended: bool,
}

impl Messages {
    fn watch(stream: Option<impl Read + Send + 'static>) -> Self {
        let held = Arc::new(Mutex::new(Held {
            bytes: Vec::new(),
            live: false,
            ended: false,
        }));
        let for_reader = Arc::clone(&held);
        let reader = stream.map(|stream| thread::spawn(move || keep(stream, &for_reader)));
        let for_clock = Arc::clone(&held);
        thread::spawn(move || show_when_slow(&for_clock));
        Self { held, reader }
    }

    /// Waits for the end of the stream and returns what was never shown.
    fn finish(self) -> String {
        if let Some(reader) = self.reader {
            // A reader that panicked has shown its message; what it kept so far is still right.
            let _ = reader.join();
        }
        let mut held = lock(&self.held);
        held.ended = true;
        String::from_utf8_lossy(&std::mem::take(&mut held.bytes)).into_owned()
    }
}

fn lock(held: &Mutex<Held>) -> std::sync::MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(mut stream: impl Read, held: &Mutex<Held>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut held = lock(held);
        held.bytes.extend_from_slice(&buffer[..count]);
        if held.live {
            show(&mut held);
        }
    }
}

fn show_when_slow(held: &Mutex<Held>) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        thread::sleep(PATIENCE / 10);
        if lock(held).ended {
            return;
        }
    }
    let mut held = lock(held);
    held.live = true;
    show(&mut held);
}

fn show(held: &mut Held) {
    // Progress is a courtesy: where stderr is closed the build goes on.
    let _ = io::stderr().write_all(&std::mem::take(&mut held.bytes));
}

#[cfg(test)]
mod tests {
    use super::executables;

    #[test]
    fn executables_are_found_by_target_name() {
        let lines = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"mm\"},\"executable\":null}\n",
            "not json\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":\"/t/kernel\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        let found = executables(lines.as_bytes()).expect("a slice can be read");
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name.as_str(), found[0].path.to_str()),
            ("kernel", Some("/t/kernel"))
        );
    }
}
