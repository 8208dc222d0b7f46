//! The `tocsin` program.
use clap::Parser;
#[derive(Parser)]
enum Cli {
    Serve {
        #[arg(long)]
        config: Option<std::path::PathBuf>,
        #[arg(long)]
        set: Vec<String>,
    },
}
fn main() {
    let Cli::Serve { config, set } = Cli::parse();
    let loaded =
        tocsin::config::Config::load(&tocsin::config::Sources::of_process(config, set)).unwrap();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(loaded.config.log.filter.clone())
        .init();
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let Err(e) = rt.block_on(tocsin::app::serve(&loaded.config, |_| {})) {
        eprintln!("{e}");
        std::process::exit(2)
    }
}
