"""A local page that shows what a network hears: the server, what it answers, and the files of the page."""

from page.examples import Example, draw_examples, find_examples
from page.server import create_server
from page.viewer import Network, Viewer, open_network

__all__ = ["Example", "Network", "Viewer", "create_server", "draw_examples", "find_examples", "open_network"]
