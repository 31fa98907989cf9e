//! Error numbers, as a type.

use core::fmt;

use linux_raw_sys::errno as raw;

/// Why a system call refused, as Linux numbers it.
///
/// Having one tells you that it is one of the named constants: between 1 and 4095.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub const $name: Self = Self::from_raw(raw::$name);
            )*

            /// The constant's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "an unnamed error",
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV
    ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY EFBIG ENOSPC ESPIPE EROFS EPIPE ERANGE ENAMETOOLONG ENOSYS ELOOP
    EOVERFLOW EOPNOTSUPP ETIMEDOUT
}

impl Errno {
    #[expect(clippy::cast_possible_truncation, reason = "error numbers end at 4095")]
    const fn from_raw(number: u32) -> Self {
        assert!(number >= 1 && number <= 4095);
        Self(number as u16)
    }

    /// Returns the number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Returns what a system call leaves in the result register: the negated number.
    #[must_use]
    pub const fn to_result_register(self) -> u64 {
        (-(self.0 as i64)).cast_unsigned()
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_register_holds_the_negated_number() {
        assert_eq!(Errno::ENOMEM.to_result_register().cast_signed(), -12);
        assert_eq!(Errno::ENOMEM.name(), "ENOMEM");
    }
}
