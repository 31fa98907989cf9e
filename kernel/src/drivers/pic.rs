//! The two 8259 interrupt controllers, which this kernel never uses.
//!
//! The firmware leaves them unmasked on vectors 8 to 15: the first timer tick after interrupts are on would arrive
//! as a double fault without an error code. So they are moved off the exceptions and masked before anything else.

use super::port::outb;

const MASTER_COMMAND: u16 = 0x20;
const MASTER_DATA: u16 = 0x21;
const SLAVE_COMMAND: u16 = 0xa0;
const SLAVE_DATA: u16 = 0xa1;

/// First vector of the controllers: a spurious interrupt of a masked 8259 is still delivered (as line 7 or 15), and
/// must not look like an exception.
pub const FIRST_VECTOR: u8 = 0x20;

/// Moves both controllers to vectors [`FIRST_VECTOR`]`..+16` and masks every line.
pub fn mask_all() {
    let sequence = [
        (MASTER_COMMAND, 0x11),
        (SLAVE_COMMAND, 0x11),
        (MASTER_DATA, FIRST_VECTOR),
        (SLAVE_DATA, FIRST_VECTOR + 8),
        (MASTER_DATA, 4),
        (SLAVE_DATA, 2),
        (MASTER_DATA, 1),
        (SLAVE_DATA, 1),
        (MASTER_DATA, 0xff),
        (SLAVE_DATA, 0xff),
    ];
    for (port, value) in sequence {
        // SAFETY: the documented initialisation sequence of the 8259; it only decides which interrupts arrive.
        unsafe { outb(port, value) };
    }
}
