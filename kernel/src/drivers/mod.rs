//! Devices of the PC that the kernel talks to itself.
//!
//! | module | device |
//! |---|---|
//! | [`pic`] | the two 8259 interrupt controllers: masked for good |
//! | [`uart`] | COM1 (the terminal) and COM2 (log out, control lines in) |
//! | [`host`] | debugcon records and isa-debug-exit: how the machine tells its host what happened and ends |
//! | [`fw_cfg`] | QEMU's configuration files: command line, arguments, initramfs |
//! | [`clock`] | time stamp counter, timer calibration, real-time clock |
//!
//! Interrupt handlers only set flags; every transfer happens in a task.

pub mod clock;
pub mod fw_cfg;
pub mod host;
pub mod pic;
pub mod port;
pub mod uart;
