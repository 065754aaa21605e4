use gotatun::udp::UdpTransportFactoryParams;
use gotatun::udp::socket::UdpSocketFactory;
use tokio::net::UdpSocket as Plain;

use super::*;

/// Returns a message of a type with indices at 4 and 8.
fn message(kind: u8, first: u32, second: u32) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &first.to_le_bytes(), &second.to_le_bytes()].concat()
}

async fn read(receiver: &mut Receiver, pool: &mut PacketBufPool) -> Vec<u8> {
    let mut packets = Vec::new();
    receiver.recv_many_from(&mut Default::default(), pool, &mut packets).await.unwrap();
    assert_eq!(packets.len(), 1);
    packets[0].0.to_vec()
}

#[tokio::test]
async fn what_belongs_to_the_earlier_devices_sessions_goes_there_and_all_else_to_the_new_one() {
    use gotatun::udp::UdpTransportFactory;
    let params = UdpTransportFactoryParams { addr: None, port: 0, fwmark: None };
    let (socket, _) = UdpSocketFactory::default().bind(&params).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let outside = Plain::bind("127.0.0.1:0").await.unwrap();
    let there: SocketAddr = ([127, 0, 0, 1], port).into();
    let mut pool = PacketBufPool::new(16);
    let one = Line::first();
    let mut first = Receiver::new(socket.clone(), Arc::clone(&one));
    outside.send_to(&message(DATA, 11, 0), there).await.unwrap();
    assert_eq!(read(&mut first, &mut pool).await, message(DATA, 11, 0));

    let two = Line::after(&one);
    let mut second = Receiver::new(socket.clone(), Arc::clone(&two));
    let sender = Sender::new(socket, Arc::clone(&two));
    let mut packet = pool.get();
    packet.truncate(0);
    packet.buf_mut().extend_from_slice(&message(INITIATION, 22, 0));
    sender.send_to(packet, outside.local_addr().unwrap()).await.unwrap();
    for sent in [
        message(DATA, 11, 1),
        message(DATA, 22, 2),
        message(INITIATION, 7, 0),
        message(RESPONSE, 7, 22),
        message(RESPONSE, 7, 33),
    ] {
        outside.send_to(&sent, there).await.unwrap();
    }
    for own in [message(DATA, 22, 2), message(INITIATION, 7, 0), message(RESPONSE, 7, 22)] {
        assert_eq!(second.recv_from(&mut pool).await.unwrap().0.to_vec(), own);
    }
    // Packets that the new device met on its way are passed on to the first one.
    outside.send_to(&message(DATA, 22, 9), there).await.unwrap();
    assert_eq!(read(&mut second, &mut pool).await, message(DATA, 22, 9));
    assert_eq!(read(&mut first, &mut pool).await, message(DATA, 11, 1));
    assert_eq!(first.recv_from(&mut pool).await.unwrap().0.to_vec(), message(RESPONSE, 7, 33));

    // Its own first message is sent again until it is answered.
    let sent = async || {
        let (mut all, mut buffer) = (Vec::new(), [0; 64]);
        while let Ok(received) = tokio::time::timeout(3 * REPEAT_AFTER[3], outside.recv_from(&mut buffer)).await {
            all.push(buffer[..received.unwrap().0].to_vec());
        }
        all
    };
    let answered_soon = sent().await;
    assert!((1..REPEAT_AFTER.len()).contains(&answered_soon.len()), "{answered_soon:?}");
    let mut packet = pool.get();
    packet.truncate(0);
    packet.buf_mut().extend_from_slice(&message(INITIATION, 23, 0));
    sender.send_to(packet, outside.local_addr().unwrap()).await.unwrap();
    assert_eq!(sent().await, vec![message(INITIATION, 23, 0); 1 + REPEAT_AFTER.len()]);

    two.drop_earlier();
    outside.send_to(&message(DATA, 11, 3), there).await.unwrap();
    assert_eq!(read(&mut second, &mut pool).await, message(DATA, 11, 3));
}

#[tokio::test]
async fn what_follows_an_answer_waits_until_the_other_end_has_sent_or_for_a_while() {
    use gotatun::udp::UdpTransportFactory;
    let params = UdpTransportFactoryParams { addr: None, port: 0, fwmark: None };
    let (socket, _) = UdpSocketFactory::default().bind(&params).await.unwrap();
    let there: SocketAddr = ([127, 0, 0, 1], socket.local_addr().unwrap().port()).into();
    let outside = Plain::bind("127.0.0.1:0").await.unwrap();
    let here = outside.local_addr().unwrap();
    let mut pool = PacketBufPool::new(16);
    let line = Line::first();
    let (sender, mut receiver) = (Sender::new(socket.clone(), Arc::clone(&line)), Receiver::new(socket, line));
    let packet = |bytes: &[u8]| {
        let mut packet = PacketBufPool::<4096>::new(1).get();
        packet.truncate(0);
        packet.buf_mut().extend_from_slice(bytes);
        packet
    };
    let next = async || {
        let mut buffer = [0; 64];
        let waited = tokio::time::timeout(Duration::from_millis(50), outside.recv_from(&mut buffer)).await;
        waited.ok().map(|received| buffer[..received.unwrap().0].to_vec())
    };
    let data = |index, number| [message(DATA, index, number), vec![0; 4]].concat();
    // The other end's session is 5, ours 6. Another host's session may have that index as well.
    sender.send_to(packet(&message(RESPONSE, 6, 5)), here).await.unwrap();
    sender.send_to(packet(&data(5, 0)), here).await.unwrap();
    let mut many = vec![(packet(&data(5, 1)), here), (packet(&data(5, 700)), here)];
    sender.send_many_to(&mut Default::default(), &mut many).await.unwrap();
    assert_eq!([next().await, next().await, next().await], [Some(message(RESPONSE, 6, 5)), Some(data(5, 700)), None]);
    outside.send_to(&message(DATA, 6, 0), there).await.unwrap();
    assert_eq!(read(&mut receiver, &mut pool).await, message(DATA, 6, 0));
    assert_eq!([next().await, next().await], [Some(data(5, 0)), Some(data(5, 1))]);
    sender.send_to(packet(&data(5, 2)), here).await.unwrap();
    assert_eq!(next().await, Some(data(5, 2)));
    // The other end says nothing, because its first packet was lost.
    sender.send_to(packet(&message(RESPONSE, 8, 7)), here).await.unwrap();
    sender.send_to(packet(&data(7, 0)), here).await.unwrap();
    assert_eq!([next().await, next().await], [Some(message(RESPONSE, 8, 7)), None]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(next().await, Some(data(7, 0)));
}

#[test]
fn a_message_that_is_too_short_is_nobodys_session() {
    assert_eq!(receiver(&[]), None);
    assert_eq!(receiver(&[DATA, 0, 0, 0, 1, 2]), None);
    assert_eq!(receiver(&message(RESPONSE, 1, 2)), Some(2));
    assert_eq!(receiver(&message(COOKIE, 1, 2)), Some(1));
    assert_eq!(receiver(&message(INITIATION, 1, 2)), None);
}
