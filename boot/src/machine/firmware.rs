//! Finds OVMF where distributions put it.

use std::{ffi::OsString, path::Path};

use crate::{Error, Result};

/// Code and the template of the variables, as Debian and Ubuntu, Fedora, Arch, openSUSE name them.
const PLACES: [(&str, &str); 6] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];

/// A UEFI firmware that is installed.
pub(super) struct Ovmf {
    code: &'static Path,
    variables: &'static Path,
}

impl Ovmf {
    /// Looks in the usual places.
    ///
    /// # Errors
    /// [`Error::Missing`] names the package.
    pub(super) fn find() -> Result<Self> {
        let mut places = PLACES
            .iter()
            .map(|(code, variables)| (Path::new(code), Path::new(variables)));
        let found = places.find(|(code, variables)| code.is_file() && variables.is_file());
        let missing = || Error::Missing {
            what: "UEFI firmware for QEMU (OVMF)".into(),
            package: "ovmf",
        };
        found
            .map(|(code, variables)| Self { code, variables })
            .ok_or_else(missing)
    }

    /// QEMU's arguments. What the guest writes into the variables is forgotten with the machine.
    pub(super) fn arguments(&self) -> [OsString; 4] {
        [
            "-drive".into(),
            super::drive("if=pflash,unit=0,format=raw,readonly=on,file=", self.code),
            "-drive".into(),
            super::drive("if=pflash,unit=1,format=raw,snapshot=on,file=", self.variables),
        ]
    }
}

/// Whether machines with UEFI firmware can be started here.
#[must_use]
pub fn uefi_is_installed() -> bool {
    Ovmf::find().is_ok()
}
