//! Kernel → stripped copy → disk image.
//!
//! ```text
//!   cargo build ─► target/x86_64-unknown-none/PROFILE/kernel           symbols stay here (module symbols, gdb)
//!                        └─ llvm-strip ─► kernel.stripped
//!                               └─ boot loader ─► kernel.bios.img | kernel.uefi.img
//! ```
//! The BIOS loads the image sector by sector: every megabyte of symbols in it would cost a second of each start.
//! Files are written under a name of their own and renamed into place, so that two machines started at once, and one
//! that still runs from the previous image, never see half a file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Error, Result, cargo, cargo::Build};

/// The target that the kernel is built for.
const KERNEL_TARGET: &str = "x86_64-unknown-none";

/// Which build of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KernelProfile {
    /// Optimised.
    Release,
    /// Not optimised, with debug assertions.
    Dev,
    /// Optimised, with debug assertions and the in-kernel trials.
    Ktest,
}

impl KernelProfile {
    fn build(self) -> Build {
        let build = |profile| Build::new("the kernel", "kernel", KERNEL_TARGET, profile);
        match self {
            Self::Release => build("release"),
            Self::Dev => build("dev"),
            Self::Ktest => build("ktest").feature("ktest"),
        }
    }
}

/// What starts the boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, part of QEMU.
    Bios,
    /// OVMF, from the distribution's package `ovmf`.
    Uefi,
}

impl Firmware {
    /// Whether this build of the crate holds the boot loader for it.
    #[must_use]
    pub const fn is_built_in(self) -> bool {
        match self {
            Self::Bios => cfg!(feature = "bios"),
            Self::Uefi => cfg!(feature = "uefi"),
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Bios => "bios.img",
            Self::Uefi => "uefi.img",
        }
    }
}

/// A built kernel. Having one tells that the file existed and was up to date a moment ago.
#[derive(Debug, Clone)]
pub struct Kernel {
    elf: PathBuf,
}

impl Kernel {
    /// Builds the kernel, or finds it up to date.
    ///
    /// # Errors
    /// [`Error::Build`] when it does not compile.
    pub fn build(profile: KernelProfile) -> Result<Self> {
        let executables = profile.build().run()?;
        let kernel = executables
            .into_iter()
            .find(|executable| executable.name == "kernel");
        let missing =
            || Error::Unexpected("cargo built package `kernel` without an executable `kernel`".into());
        Ok(Self {
            elf: kernel.ok_or_else(missing)?.path,
        })
    }

    /// The ELF file with its symbols.
    #[must_use]
    pub fn elf(&self) -> &Path {
        &self.elf
    }

    /// Writes the disk image for `firmware` beside the kernel and returns where it is.
    ///
    /// # Errors
    /// [`Error::Unexpected`] without `llvm-strip`, [`Error::Io`] when the target directory cannot be written,
    /// [`Error::BadInput`] when this build of the crate lacks the boot loader for `firmware`.
    pub fn disk_image(&self, firmware: Firmware) -> Result<PathBuf> {
        let image = self.elf.with_extension(firmware.suffix());
        // What the loader says on COM1 is shown when the kernel never comes to its first line.
        let builder = self.builder(LoaderLog::Com1)?;
        write_and_rename(&image, |path| create(&builder, firmware, path))?;
        Ok(image)
    }

    /// Writes a disk image to `image` that needs nobody beside it: the boot loader hands `initrd` to the kernel.
    ///
    /// # Errors
    /// As [`Kernel::disk_image`].
    pub fn standalone_image(&self, firmware: Firmware, initrd: &[u8], image: &Path) -> Result<()> {
        let ramdisk = self.elf.with_extension(format!("ramdisk-{}", process::id()));
        fs::write(&ramdisk, initrd).map_err(Error::io(format!("write {}", ramdisk.display())))?;
        let mut builder = self.builder(LoaderLog::Off)?;
        builder.set_ramdisk(ramdisk.clone());
        let written = write_and_rename(image, |path| create(&builder, firmware, path));
        // The image holds its own copy.
        let _ = fs::remove_file(ramdisk);
        written
    }

    fn builder(&self, log: LoaderLog) -> Result<bootloader::DiskImageBuilder> {
        let stripped = strip(&self.elf, &self.elf.with_extension("stripped"))?;
        let mut builder = bootloader::DiskImageBuilder::new(stripped);
        let mut config = bootloader::BootConfig::default();
        // Nobody looks at the screen, and drawing letters on it costs 0.3 s of processor time under TCG.
        config.frame_buffer_logging = false;
        config.serial_logging = log == LoaderLog::Com1;
        builder.set_boot_config(&config);
        Ok(builder)
    }
}

/// Where the boot loader tells what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoaderLog {
    Com1,
    Off,
}

fn create(builder: &bootloader::DiskImageBuilder, firmware: Firmware, path: &Path) -> Result<()> {
    let written = match firmware {
        #[cfg(feature = "bios")]
        Firmware::Bios => builder.create_bios_image(path),
        #[cfg(feature = "uefi")]
        Firmware::Uefi => builder.create_uefi_image(path),
        #[cfg(not(all(feature = "bios", feature = "uefi")))]
        _ => {
            let _ = (builder, path);
            let feature = if firmware == Firmware::Bios {
                "bios"
            } else {
                "uefi"
            };
            return Err(Error::BadInput(format!(
                "this `boot` was built without its cargo feature `{feature}`"
            )));
        }
    };
    written.map_err(|error| Error::Unexpected(format!("cannot write the disk image: {error:#}")))
}

/// Writes a copy of the ELF file `from` without symbols to `to`, and returns `to`.
///
/// # Errors
/// [`Error::Unexpected`] when the toolchain lacks its component `llvm-tools` or the tool refuses the file.
pub fn strip(from: &Path, to: &Path) -> Result<PathBuf> {
    let tool = llvm_strip()?;
    write_and_rename(to, |path| {
        let status = Command::new(&tool)
            .arg("--strip-all")
            .arg("-o")
            .arg(path)
            .arg(from)
            .status();
        let status = status.map_err(Error::io("start llvm-strip"))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Unexpected(format!(
            "llvm-strip failed on {}",
            from.display()
        )))
    })?;
    Ok(to.to_owned())
}

fn llvm_strip() -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(cargo::workspace_root())
        .output();
    let output = output.map_err(Error::io("start rustc"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let hosts =
        fs::read_dir(sysroot.join("lib/rustlib")).map_err(Error::io("list the toolchain's folder"))?;
    let tools = hosts.flatten().map(|host| host.path().join("bin/llvm-strip"));
    tools.into_iter().find(|tool| tool.is_file()).ok_or_else(|| {
        let what = "the toolchain's component llvm-tools is missing: type `rustup toolchain install` in the repository";
        Error::Unexpected(what.into())
    })
}

/// Lets `write` fill a new file beside `path`, then puts it in `path`'s place.
fn write_and_rename(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    // Relaxed: only uniqueness matters.
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{serial}", process::id()));
    let temporary = path.with_file_name(name);
    let written = write(&temporary)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io(format!("write {}", path.display()))));
    if written.is_err() {
        // It may not exist; the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}
