//! Host test kit of mm.
