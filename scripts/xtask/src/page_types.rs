//! `page-types`: Linux's own reader of kpageflags, built from the distribution's source package.
//!
//! Its licence is not ours, so it stays outside the repository: in `$XDG_CACHE_HOME/cleave` or `~/.cache/cleave`.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, none_left, root};

const PACKAGE: &str = "linux-source-6.1";
/// Where the package puts its archive when it is installed.
const INSTALLED: &str = "/usr/src/linux-source-6.1.tar.xz";
/// What `tools/vm/Makefile` needs of the source tree.
const NEEDED: [&str; 7] = [
    "tools/vm",
    "tools/lib/api",
    "tools/lib/str_error_r.c",
    "tools/include",
    "tools/scripts",
    "tools/build",
    "include/uapi/linux",
];

/// `page-types [--no-download]`
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (download, rest) = match arguments.split_first() {
        Some((word, rest)) if word == "--no-download" => (false, rest),
        _ => (true, arguments),
    };
    none_left(rest)?;
    let folder = cache()?;
    let tool = folder.join("linux-source-6.1/tools/vm/page-types");
    if !tool.is_file() {
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        let archive = archive(&folder, download)?;
        build(&folder, &archive)?;
    }
    if !tool.is_file() {
        return Err(format!("make ended well, but there is no {}", tool.display()));
    }
    println!("{}", tool.display());
    Ok(())
}

/// The cache folder; never inside the repository.
fn cache() -> Result<PathBuf, String> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let folder = base
        .ok_or("neither XDG_CACHE_HOME nor HOME is set: where should the tool go?")?
        .join("cleave");
    if folder.starts_with(root()) {
        return Err(format!(
            "{} is inside the repository; set XDG_CACHE_HOME",
            folder.display()
        ));
    }
    Ok(folder)
}

/// The source archive: installed, or fetched into `folder`.
fn archive(folder: &Path, download: bool) -> Result<PathBuf, String> {
    let installed = Path::new(INSTALLED);
    if installed.is_file() {
        return Ok(installed.to_owned());
    }
    let fetched = folder.join("linux-source-6.1.tar.xz");
    if fetched.is_file() {
        return Ok(fetched);
    }
    if !download {
        return Err(format!("package {PACKAGE} is not installed"));
    }
    eprintln!("xtask: fetching package {PACKAGE} (140 MB)");
    let missing = format!("install package {PACKAGE}, or fetch it where apt-get works");
    // apt-get download needs no root, and installs nothing.
    step(
        Command::new("apt-get")
            .args(["download", PACKAGE])
            .current_dir(folder)
            .stdout(Stdio::null()),
    )
    .map_err(|message| format!("{message}; {missing}"))?;
    let package = newest_package(folder)?;
    unpack_package(&package, folder)?;
    // The archive inside is all that is needed from here on.
    fs::remove_file(&package).map_err(|error| format!("cannot remove {}: {error}", package.display()))?;
    Ok(fetched)
}

fn newest_package(folder: &Path) -> Result<PathBuf, String> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("cannot list {}: {error}", folder.display()))?;
    let is_package = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with(PACKAGE) && path.extension() == Some(OsStr::new("deb"))
    };
    let packages = entries.flatten().map(|entry| entry.path()).filter(is_package);
    packages
        .max()
        .ok_or_else(|| format!("apt-get left no package {PACKAGE} in {}", folder.display()))
}

/// Takes the source archive out of the package, into `folder`.
fn unpack_package(package: &Path, folder: &Path) -> Outcome {
    let contents = folder.join("package");
    step(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&contents),
    )?;
    let inside = contents.join(INSTALLED.trim_start_matches('/'));
    let moved = fs::rename(&inside, folder.join("linux-source-6.1.tar.xz"))
        .and_then(|()| fs::remove_dir_all(&contents));
    moved.map_err(|error| format!("cannot move {}: {error}", inside.display()))
}

/// Unpacks what the tool needs and makes it.
fn build(folder: &Path, archive: &Path) -> Outcome {
    eprintln!("xtask: unpacking {} (half a minute)", archive.display());
    let members = NEEDED.iter().map(|path| format!("{PACKAGE}/{path}"));
    step(
        Command::new("tar")
            .arg("-xJf")
            .arg(archive)
            .arg("-C")
            .arg(folder)
            .args(members),
    )?;
    eprintln!("xtask: making page-types");
    let tools = folder.join(PACKAGE).join("tools/vm");
    step(
        Command::new("make")
            .arg("-C")
            .arg(tools)
            .arg("page-types")
            .stdout(Stdio::null()),
    )
}

fn step(command: &mut Command) -> Outcome {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{name} failed: {status}"))
    }
}
