"""A real RTSP server for tests and benchmarks: gst-rtsp-server, run by the system's Python, which has its bindings.

    /usr/bin/python3 tests/servers/rtsp.py PORT [--size 320x240] [--fps 10] [--user u --password p]

Serves rtsp://127.0.0.1:PORT/cam, H.264 with a key frame every second, and prints `ready`. It ends when its stdin closes, so
that no server outlives the test that started it.
"""

import argparse
import sys
import threading

import gi  # type: ignore[import-not-found]  # of the system

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found]  # noqa: E402  after the versions


def main() -> None:
    """Serves until stdin closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    options = parser.parse_args()
    width, height = options.size.split("x")
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},framerate={options.fps}/1"
        f" ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={options.fps} ! rtph264pay name=pay0 pt=96 config-interval=1 )"
    )
    factory.set_shared(True)
    if options.user:
        _ask_for_password(server, factory, options.user, options.password)
    server.get_mount_points().add_factory("/cam", factory)
    if not server.attach(None):
        sys.exit(f"port {options.port} is taken")
    loop = GLib.MainLoop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    loop.run()


def _ask_for_password(server, factory, user, password) -> None:  # type: ignore[no-untyped-def]  # PyGObject has no stubs
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", GstRtspServer.RTSP_PERM_MEDIA_FACTORY_ACCESS, True)
    permissions.add_permission_for_role("viewer", GstRtspServer.RTSP_PERM_MEDIA_FACTORY_CONSTRUCT, True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    main()
