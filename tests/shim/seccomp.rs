//! Looking at the netlink messages of other processes before the kernel does (seccomp user notification).
#![expect(unsafe_code, reason = "seccomp(2) and its ioctls have no safe wrapper")]

use std::{
    fs::File,
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, seccomp_notif, seccomp_notif_resp, sock_filter};

use crate::ipvs::Verdict;

nix::ioctl_readwrite!(notification_receive, b'!', 0, seccomp_notif);
nix::ioctl_readwrite!(notification_send, b'!', 1, seccomp_notif_resp);

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const SENDTO_ADDRESS_LENGTH: u32 = 16 + 5 * 8;

/// A request to IPVS is far shorter.
const LONGEST_MESSAGE: u64 = 256;

/// The watched calls, as they come in.
pub(crate) struct Calls(OwnedFd);

/// One call that waits for its answer.
pub(crate) struct Call(seccomp_notif);

/// From now on each `sendto` to a netlink address, by this thread and all it starts, waits for an answer.
pub(crate) fn watch_netlink() -> io::Result<Calls> {
    let address_length = u32::try_from(mem::size_of::<libc::sockaddr_nl>()).map_err(io::Error::other)?;
    let sendto = u32::try_from(libc::SYS_sendto).map_err(io::Error::other)?;
    let mut program = [
        load(ARCH),
        unless_equal(ARCHITECTURE, 5),
        load(NUMBER),
        unless_equal(sendto, 3),
        load(SENDTO_ADDRESS_LENGTH),
        unless_equal(address_length, 1),
        instruction(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF),
        instruction(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 8, filter: program.as_mut_ptr() };
    // SAFETY: `filter` and the program it points to outlive the call, which copies them.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(Calls(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

impl Calls {
    /// Waits for the next call.
    pub(crate) fn next(&self) -> io::Result<Call> {
        loop {
            // SAFETY: a C structure of integers, for which zero is valid; the kernel demands zeroes.
            let mut call: seccomp_notif = unsafe { mem::zeroed() };
            // SAFETY: the descriptor is a listener and `call` the structure that it fills.
            match unsafe { notification_receive(self.0.as_raw_fd(), &raw mut call) } {
                Ok(_) => return Ok(Call(call)),
                // The caller died before we looked.
                Err(nix::Error::ENOENT | nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets the call go on, or fail.
    pub(crate) fn answer(&self, call: &Call, verdict: Verdict) -> io::Result<()> {
        let (error, flags) = match verdict {
            Verdict::Pass => (0, u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).map_err(io::Error::other)?),
            Verdict::NoSuchService => (-libc::ESRCH, 0),
        };
        let mut response = seccomp_notif_resp { id: call.0.id, val: 0, error, flags };
        // SAFETY: the descriptor is a listener and `response` the structure that it reads.
        match unsafe { notification_send(self.0.as_raw_fd(), &raw mut response) } {
            Ok(_) | Err(nix::Error::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Call {
    /// The beginning of the message that the caller wants to send.
    pub(crate) fn message(&self) -> io::Result<Vec<u8>> {
        let [_, buffer, length, ..] = self.0.data.args;
        let mut message = vec![0; usize::try_from(length.min(LONGEST_MESSAGE)).map_err(io::Error::other)?];
        File::open(format!("/proc/{}/mem", self.0.pid))?.read_exact_at(&mut message, buffer)?;
        Ok(message)
    }
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, offset)
}

/// Skips `count` instructions unless the loaded word is `value`.
fn unless_equal(value: u32, count: u8) -> sock_filter {
    instruction(BPF_JMP | BPF_JEQ | BPF_K, count, value)
}

#[expect(clippy::cast_possible_truncation, reason = "BPF operation codes have 16 bits")]
fn instruction(code: u32, jump_if_not: u8, operand: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: jump_if_not, k: operand }
}
