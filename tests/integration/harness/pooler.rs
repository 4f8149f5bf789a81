//! A PgBouncer for one test, on a free port of loopback.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use tempfile::TempDir;
use url::Url;

use super::{Process, SOON, Sandbox, wait_until};

pub(crate) struct Pooler {
    _process: Process,
    _directory: TempDir,
    port: u16,
}

/// Where Debian installs it, which is not in every PATH.
fn program() -> &'static Path {
    let path = Path::new("/usr/sbin/pgbouncer");
    assert!(path.exists(), "no PgBouncer: `make test` installs it, or `apt-get install pgbouncer`");
    path
}

impl Pooler {
    /// Lends sessions according to `pool_mode`. Its one database, `pooled`, is the sandbox's
    /// schema; `settings` are further lines of its configuration.
    pub(crate) fn before(sandbox: &Sandbox, pool_mode: &str, settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // It may have to run as another user than the tests.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("it is ours");
        let server = Url::parse(sandbox.database.url()).expect("a URL");
        let schema = sandbox.queue().split('_').next().expect("a name");
        let port = free_port();
        let (host, upstream) = (server.host_str().expect("a host"), server.port().expect("a port"));
        let (user, password) = (server.username(), server.password().unwrap_or_default());
        // Options of a client's startup message don't reach the server, so its sessions have a time zone other
        // than the notifier's, as a server's configuration may say.
        let configuration = format!(
            "[databases]\n\
             pooled = host={host} port={upstream} dbname={} user={user} password={password} \
             timezone=Asia/Kolkata connect_query='SET search_path = {schema}'\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 3\n{settings}\n",
            server.path().trim_start_matches('/')
        );
        let file = directory.path().join("pgbouncer.ini");
        fs::write(&file, configuration).expect("it is ours");
        let mut command = Command::new(program());
        // It refuses to run as root.
        if is_root() {
            command.args(["--user", "nobody"]);
        }
        command.arg(&file);
        let mut process = Process::spawn(command);
        wait_until(SOON, "PgBouncer listens", || {
            assert!(process.is_running(), "{:#?}", process.stderr());
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        Self { _process: process, _directory: directory, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://anyone@127.0.0.1:{}/pooled", self.port)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
