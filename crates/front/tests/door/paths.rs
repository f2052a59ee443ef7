//! No spelling of a path reaches another function, or the administration.

use crate::lab::{Lab, body, header, status};

/// A function and the path it sees, the administration, or nobody.
enum Expected {
    Function(&'static str, &'static str),
    Admin,
    Nobody(u16),
}

use Expected::{Admin, Function, Nobody};

pub(crate) fn answered_by(response: &str) -> String {
    match status(response) {
        200 if body(response) == "admin" => "admin".to_owned(),
        200 => {
            let line = |name: &str| {
                body(response).lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?")
            };
            format!("{} {}", line("function: "), line("path: "))
        }
        status => status.to_string(),
    }
}

#[tokio::test]
async fn paths_count_as_they_are_sent() {
    let lab = Lab::new().await;
    for (target, expected) in [
        ("/fn/a", Function("a", "/")),
        ("/fn/a/", Function("a", "/")),
        ("/fn/a?x=/fn/b", Function("a", "/")),
        ("/fn/a/../b", Function("a", "/../b")),
        ("/fn/a/../../v1/functions", Function("a", "/../../v1/functions")),
        ("/fn/a/%2e%2e/b", Function("a", "/%2e%2e/b")),
        ("/fn/a//b", Function("a", "//b")),
        ("/fn/a/b;c=d", Function("a", "/b;c=d")),
        ("/fn/a/%00", Function("a", "/%00")),
        ("/fn/a/%", Function("a", "/%")),
        ("/fn/a/\\..\\b", Function("a", "/\\..\\b")),
        ("/fn/fn/a", Function("fn", "/a")),
        ("/fn/a%2fb", Nobody(404)),
        ("/fn/a%2Fb", Nobody(404)),
        ("/fn/%61", Nobody(404)),
        ("/fn/a%00", Nobody(404)),
        ("/fn/a%00b", Nobody(404)),
        ("/fn/a;b", Nobody(404)),
        ("/fn/a;/b", Nobody(404)),
        ("/fn/A", Nobody(404)),
        ("/fn/a.", Nobody(404)),
        ("/fn/a\\b", Nobody(404)),
        ("/fn//a", Nobody(404)),
        ("/fn/", Nobody(404)),
        ("/fn/../v1/functions", Nobody(404)),
        ("/fn/%2e%2e/v1/functions", Nobody(404)),
        ("/fn/unknown/v1/functions", Nobody(404)),
        ("/", Admin),
        ("/fn", Admin),
        ("/fn?/a", Admin),
        ("//fn/a", Admin),
        ("/FN/a", Admin),
        ("/Fn/a", Admin),
        ("/./fn/a", Admin),
        ("/x/../fn/a", Admin),
        ("/%66n/a", Admin),
        ("/v1/functions", Admin),
        ("/fn/a\0", Nobody(400)),
        ("/fn/a\t", Nobody(400)),
        ("fn/a", Nobody(400)),
        ("*", Nobody(400)),
        ("", Nobody(400)),
    ] {
        let expected = match expected {
            Function(name, path) => format!("{name} {path}"),
            Admin => "admin".to_owned(),
            Nobody(status) => status.to_string(),
        };
        let response = lab.get(target, "localhost").await;
        assert_eq!(answered_by(&response), expected, "{target:?}: {response}");
    }
}

#[tokio::test]
async fn the_query_is_passed_on_as_it_was_sent() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/a/p?x=%2f&y=..//&z=?#", "localhost").await;
    let url = "GET http://localhost/p?x=%2f&y=..//&z=?\n";
    assert!(body(&response).contains(url), "{response}");
}

#[tokio::test]
async fn an_unknown_function_is_a_problem_that_says_what_to_do() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/unknown", "localhost").await;
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    let problem: api::Problem = serde_json::from_str(body(&response)).expect("a problem");
    assert_eq!(problem.error.code, "unknown-function");
    for advice in ["`unknown`", "hearth ls", "hearth deploy"] {
        assert!(problem.error.message.contains(advice), "{}", problem.error.message);
    }
}

#[tokio::test]
async fn what_is_not_found_is_said_also_to_whoever_still_sends() {
    let lab = Lab::new().await;
    let size = 8 << 20;
    let head = format!(
        "POST /fn/unknown HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    );
    let mut request = head.into_bytes();
    request.resize(request.len() + size, b'x');
    assert_eq!(status(&lab.ask(request).await), 404);
}

#[tokio::test]
async fn every_function_that_answers_has_a_name() {
    assert!(crate::lab::ECHOES.into_iter().all(crate::lab::a_name));
}
