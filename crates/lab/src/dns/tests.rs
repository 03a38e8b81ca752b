use super::*;

/// The answer of RFC 1035's style to `web.default.svc. SRV`, with a compressed target and an additional A.
fn answer(id: u16) -> (Vec<u8>, Vec<u8>) {
    let request = write_request(id, "web.default.svc", 33).unwrap();
    let mut bytes = request.clone();
    bytes[2] = 0x84;
    bytes[3] = 0x80;
    bytes[7] = 1;
    bytes[11] = 1;
    bytes.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 5]);
    bytes.extend([0, 13, 0, 0, 0, 100, 0x1f, 0x90, 4, b'P', b'o', b'd', b'1', 0xc0, 12]);
    bytes.extend([4, b'p', b'o', b'd', b'1', 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 172, 16, 1, 2]);
    (request, bytes)
}

#[test]
fn an_answer_with_compressed_names_is_read() {
    let (request, bytes) = answer(7);
    let read = Message(&bytes).read(7, &request).unwrap();
    assert_eq!((read.rcode.as_str(), read.authoritative, read.truncated), ("NOERROR", true, false));
    assert_eq!(read.answers[0].data, "0 100 8080 pod1.web.default.svc.");
    assert_eq!(read.answers[0].name, "web.default.svc.");
    assert_eq!(read.additional[0].data, "172.16.1.2");
    assert_eq!(read.additional[0].name, "pod1.web.default.svc.");
}

#[test]
fn an_answer_cut_anywhere_is_an_error_and_no_panic() {
    let (request, bytes) = answer(7);
    for length in 0..bytes.len() {
        assert!(Message(&bytes[..length]).read(7, &request).is_err(), "{length}");
    }
}

#[test]
fn a_name_that_points_at_itself_is_an_error() {
    let mut bytes = vec![0; 12];
    bytes.extend([0xc0, 12]);
    assert!(Message(&bytes).name(12).is_err());
}

#[test]
fn an_answer_to_another_question_is_an_error() {
    let (request, bytes) = answer(7);
    assert!(Message(&bytes).read(8, &request).is_err());
    let other = write_request(7, "other.default.svc", 33).unwrap();
    assert!(Message(&bytes).read(7, &other).is_err());
}

#[test]
fn names_that_cannot_be_asked_for_are_refused() {
    for name in ["a..b", &"x".repeat(64)] {
        assert!(write_request(1, name, 1).is_err(), "{name:?}");
    }
    assert_eq!(write_request(1, ".", 1).unwrap().len(), 12 + 5);
    assert!(kind_number("nonsense").is_err());
    assert_eq!(kind_number("aaaa").unwrap(), 28);
}

/// Makes a request its own negative answer.
fn negative(mut request: Vec<u8>) -> Vec<u8> {
    request[2] |= 0x84;
    request[3] = 3;
    request
}

#[test]
fn a_server_is_asked_over_udp_and_tcp() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = std::net::TcpListener::bind(address).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 512];
            let (length, client) = udp.recv_from(&mut buffer).unwrap();
            let answer = negative(buffer[..length].to_vec());
            // What is not for this question is passed over.
            udp.send_to(&[0; 12], client).unwrap();
            udp.send_to(&answer, client).unwrap();
        });
        scope.spawn(|| {
            let (mut stream, _) = tcp.accept().unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut request = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&[&length[..], &negative(request)].concat()).unwrap();
        });
        for tcp in [false, true] {
            let timeout = Duration::from_secs(10);
            let question = Lookup { tcp, timeout, ..Lookup::new(address, "nobody.default.svc", "A") };
            let answer = lookup(&question).unwrap();
            assert_eq!((answer.rcode.as_str(), answer.authoritative), ("NXDOMAIN", true));
            assert!(answer.addresses().is_empty());
        }
    });
}
