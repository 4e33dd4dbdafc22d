//! `weir ingress check`: what it prints, and how it ends.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

fn check(file: &str, manifest: &str) -> Output {
    let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["ingress", "check", "--file", file])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    weir.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    weir.wait_with_output().unwrap()
}

fn ingress(annotation: &str) -> String {
    format!(
        "
kind: Ingress
metadata: {{name: web, namespace: shop, annotations: {{{annotation}}}}}
spec:
  ingressClassName: nginx
  rules:
  - host: shop.example
    http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}
"
    )
}

#[test]
fn its_exit_code_says_whether_there_are_problems() {
    let good = check("-", &ingress("nginx.ingress.kubernetes.io/limit-rps: '5'"));
    assert_eq!(good.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&good.stdout), "Ingresses: 1, problems: 0\n");

    let bad = check("-", &ingress("nginx.ingress.kubernetes.io/limit-rsp: '5'"));
    assert_eq!(bad.status.code(), Some(1));
    let said = String::from_utf8_lossy(&bad.stdout);
    let problem = "shop/web: UnknownAnnotation: annotation nginx.ingress.kubernetes.io/limit-rsp is not known: is it \
                   limit-rps?\n";
    assert_eq!(said, format!("{problem}Ingresses: 1, problems: 1\n"));

    let missing = check("/nonexistent/manifest.yaml", "");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot read /nonexistent/manifest.yaml"));
}
