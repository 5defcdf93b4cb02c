//! What is in memory stays there.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// No core dump of this process, nor of a program that it runs, and no look into it by other processes of its user:
/// there are keys in it.
pub fn keep() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A core pattern that is a program does not heed the limit.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
