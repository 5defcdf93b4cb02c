//! `deadlight-agent`: see `deadlight_agent::cli`.

fn main() -> std::process::ExitCode {
    deadlight_agent::cli::main()
}
