"""An RTSP server that takes a stream by RECORD and plays it to others.

    rtspserver.py CODEC FOLDER

GStreamer's RTSP server on a free port of 127.0.0.1, which is the first line of
its output, with Digest and the credentials below. Publishers go to /in/cam; CODEC
is h264, h264+aac or h265. What they send is written to FOLDER/video and
FOLDER/sound as it comes, and played at /out to whoever asks. A session of which nothing is heard but its packets ends after
TIMEOUT seconds. Each session that begins or ends is a line of output.
"""
import os
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstApp, GstRtsp, GstRtspServer  # noqa: E402,F401

USER, PASSWORD = "mirror", "s3cr+t/x"
TIMEOUT = 3  # s

codec, folder = sys.argv[1], sys.argv[2]
video, _, sound = codec.partition("+")

FORMATS = {
    "h264": "video/x-h264,stream-format=byte-stream,alignment=au",
    "h265": "video/x-h265,stream-format=byte-stream,alignment=au",
    "aac": "audio/mpeg,mpegversion=4,stream-format=adts,framed=true",
}
DEPAY = {"h264": "rtph264depay", "h265": "rtph265depay", "aac": "rtpmp4gdepay"}
PAY = {"h264": "rtph264pay config-interval=-1", "h265": "rtph265pay config-interval=-1", "aac": "rtpmp4gpay"}
PARSE = {"h264": "h264parse", "h265": "h265parse", "aac": "aacparse"}
names = {"video": video, **({"sound": sound} if sound else {})}


def say(*words):
    print(*words, flush=True)


class Relay:
    """Hands the samples of one kind to a file, and to who plays."""

    def __init__(self, name):
        self.file = open(os.path.join(folder, name), "ab", buffering=0)
        self.players = []

    def sample(self, sink):
        buffer = sink.emit("pull-sample").get_buffer()
        self.file.write(buffer.extract_dup(0, buffer.get_size()))
        for player in list(self.players):
            player.push(buffer)
        return Gst.FlowReturn.OK


class Player:
    """One appsrc: begins with a keyframe, and with its own time."""

    def __init__(self, src):
        self.src, self.zero = src, None

    def push(self, buffer):
        if buffer.pts == Gst.CLOCK_TIME_NONE:
            return
        if self.zero is None:
            if buffer.has_flags(Gst.BufferFlags.DELTA_UNIT):
                return
            self.zero = buffer.pts
        copy = buffer.copy_deep()
        copy.pts = max(0, buffer.pts - self.zero) + Gst.SECOND // 5
        copy.dts = Gst.CLOCK_TIME_NONE
        self.src.emit("push-buffer", copy)


relays = {name: Relay(name) for name in names}


def on_record(_, media):
    for name in names:
        media.get_element().get_child_by_name(name).connect("new-sample", relays[name].sample)


def on_play(_, media):
    players = {name: Player(media.get_element().get_child_by_name(name)) for name in names}
    for name, player in players.items():
        relays[name].players.append(player)

    def gone(_):
        for name, player in players.items():
            if player in relays[name].players:
                relays[name].players.remove(player)

    media.connect("unprepared", gone)


def permissions():
    p = GstRtspServer.RTSPPermissions()
    p.add_role(USER)
    for what in ("access", "construct"):
        p.add_permission_for_role(USER, "media.factory." + what, True)
    return p


Gst.init(None)
server = GstRtspServer.RTSPServer(address="127.0.0.1", service="0")
# A thread each: who plays waits for what the other sends.
server.get_thread_pool().set_max_threads(8)

auth = GstRtspServer.RTSPAuth()
auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", USER)
auth.add_digest(USER, PASSWORD, token)
server.set_auth(auth)

take = GstRtspServer.RTSPMediaFactory()
take.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
take.set_launch("( " + " ".join(
    f"{DEPAY[c]} name=depay{i} ! {PARSE[c]} ! {FORMATS[c]} ! appsink name={n} sync=false emit-signals=true"
    for i, (n, c) in enumerate(names.items())) + " )")
take.set_permissions(permissions())
take.connect("media-configure", on_record)
server.get_mount_points().add_factory("/in/cam", take)  # RECORD wants the whole path

play = GstRtspServer.RTSPMediaFactory()
play.set_launch("( " + " ".join(
    f"appsrc name={n} is-live=true format=time caps={FORMATS[c]} ! {PARSE[c]} ! {PAY[c]} name=pay{i} pt={96 + i}"
    for i, (n, c) in enumerate(names.items())) + " )")
play.set_permissions(permissions())
play.connect("media-configure", on_play)
server.get_mount_points().add_factory("/out", play)


def on_session(_, session):
    session.set_timeout(TIMEOUT)
    session.set_property("extra-timeout", 0)  # else 5 s more


def on_client(_, client):
    client.connect("announce-request", lambda _, ctx: say("announce", ctx.uri.abspath))
    client.connect("record-request", lambda _, ctx: say("record", ctx.uri.abspath))
    client.connect("teardown-request", lambda _, ctx: say("teardown", ctx.uri.abspath))
    client.connect("new-session", on_session)
    client.connect("closed", lambda _: say("closed"))


server.connect("client-connected", on_client)


def clean():
    if server.get_session_pool().cleanup():
        say("expired")
    return True


GLib.timeout_add(200, clean)
server.attach(None)
say("port", server.get_bound_port())
GLib.MainLoop().run()
