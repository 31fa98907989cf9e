//! Ring-3 programs of the tests: ordinary static Linux programs.
