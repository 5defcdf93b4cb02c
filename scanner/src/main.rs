//! The scanner's program; everything is in the library.

fn main() -> std::process::ExitCode {
    deadlight_scanner::cli::main()
}
