//! Connected sockets whose backend goes: real ones, of processes in the node's and in a pod's namespace.

mod node;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use node::{
    TestNode,
    echo::{PATIENCE, echo_pod},
};
use serde_json::json;
use weir_dataplane::{kernel::maps::Maps, sockets};
use weir_tests::Namespace;

/// A shell in the node's cgroup: each line that it reads is a command, whose output it ends with a byte of one.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(node: &TestNode, namespace: &Namespace) -> Self {
        let script = r#"echo $$ > "$0/cgroup.procs"; exec 2>&1; while read -r line; do eval "$line"; printf '\001'; done"#;
        let mut bash = namespace.command("bash");
        let child = bash.args(["-c", script]).arg(node.cgroup.path());
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    /// Runs a command, and returns what it says.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        let mut said = Vec::new();
        self.output.read_until(1, &mut said).unwrap();
        String::from_utf8(said).unwrap().trim_end_matches(['\n', '\x01']).to_owned()
    }

    /// Waits for an answer over the connected socket.
    fn read(&mut self) -> String {
        self.run("timeout 5 head -c 2 <&3")
    }

    /// Asks over the connected socket.
    fn ask(&mut self) -> String {
        self.run("printf x >&3 && timeout 5 head -c 2 <&3")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the agent does a moment after each change. Returns how many sockets it ended.
fn pass(node: &TestNode) -> u64 {
    let maps = Maps::open(&node.paths()).unwrap();
    let stale = node.stale(sockets::read(&maps).unwrap());
    node.namespace.inside(|| sockets::destroy(&maps, &node.paths(), &stale).unwrap())
}

fn connect(protocol: &str, n: u8) -> String {
    format!("exec 3<>/dev/{protocol}/10.96.0.{n}/80")
}

#[test]
fn a_connected_datagram_socket_ends_with_its_backend_and_the_next_one_lives() {
    let mut node = TestNode::new(true);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let (client, _) = node.add_pod("client");
    node.serve(1, &[a]);
    // The same backend behind another service, and its address without one.
    node.serve(2, &[a]);
    let mut shells = [Shell::start(&node, &node.namespace), Shell::start(&node, &client)];
    let mut bystander = Shell::start(&node, &node.namespace);
    let mut direct = Shell::start(&node, &node.namespace);
    for shell in &mut shells {
        assert_eq!(shell.run(&connect("udp", 1)), "");
        assert_eq!(shell.ask(), "ax");
    }
    bystander.run(&connect("udp", 2));
    direct.run(&format!("exec 3<>/dev/udp/{a}/8080"));
    assert_eq!((bystander.ask(), direct.ask()), ("ax".into(), "ax".into()));
    assert_eq!(pass(&node), 0, "nothing has gone");

    node.serve(1, &[b]);
    for shell in &mut shells {
        assert_eq!(shell.ask(), "ax", "the socket keeps its peer");
    }
    assert_eq!(pass(&node), 2);
    for shell in &mut shells {
        let (read, written) = (shell.read(), shell.ask());
        assert!(read.contains("Software caused connection abort"), "{read}");
        assert!(written.contains("Destination address required"), "{written}");
        shell.run(&connect("udp", 1));
        assert_eq!(shell.ask(), "bx", "connected again, to who lives");
    }
    assert_eq!((bystander.ask(), direct.ask()), ("ax".into(), "ax".into()), "others keep theirs");
    assert_eq!(pass(&node), 0, "once");
}

#[test]
fn an_endpoint_that_serves_keeps_its_datagram_sockets() {
    let mut node = TestNode::new(true);
    let (_a, a) = echo_pod(&node, "a");
    let mut shell = Shell::start(&node, &node.namespace);
    node.serve(1, &[a]);
    shell.run(&connect("udp", 1));
    assert_eq!(shell.ask(), "ax");
    let mut conditions = |ready: bool, serving: bool, terminating: bool| {
        let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
        node.serve_in(1, &[a], &conditions);
        pass(&node)
    };
    assert_eq!(conditions(false, true, true), 0, "it still serves while it terminates");
    assert_eq!(conditions(false, false, true), 1);
    assert!(shell.read().contains("Software caused connection abort"));
}

#[test]
fn a_stream_drains_while_any_service_lists_its_backend() {
    let mut node = TestNode::new(true);
    let (_a, a) = echo_pod(&node, "a");
    let mut shell = Shell::start(&node, &node.namespace);
    node.serve(1, &[a]);
    node.serve(2, &[a]);
    shell.run(&connect("tcp", 1));
    assert_eq!(shell.run("timeout 5 head -c 1 <&3"), "a");
    node.serve(1, &[]);
    assert_eq!(pass(&node), 0);
    assert_eq!(shell.run("printf x >&3 && timeout 5 head -c 1 <&3"), "x");
    node.serve(2, &[]);
    assert_eq!(pass(&node), 1);
    let said = shell.run("printf x >&3; timeout 5 head -c 1 <&3");
    assert!(said.contains("Software caused connection abort") || said.contains("Broken pipe"), "{said}");
}

#[test]
fn a_socket_that_has_moved_on_is_left_alone() {
    let mut node = TestNode::new(true);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    node.serve(1, &[a]);
    node.serve(2, &[b]);
    let socket = node.namespace.inside(|| {
        let _entered = node.cgroup.enter().unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for n in [1, 2] {
            socket.connect(SocketAddr::from(([10, 96, 0, n], 80))).unwrap();
        }
        socket
    });
    node.serve(1, &[]);
    assert_eq!(pass(&node), 0);
    let mut answer = [0; 2];
    socket.send(b"y").unwrap();
    socket.recv(&mut answer).unwrap();
    assert_eq!(&answer, b"by");
}
