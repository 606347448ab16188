"""A ROS 2 node from /thermal/image (mono8 or mono16) to /thermal/colour (rgb8).

NOT TESTED: there was no ROS 2 where this was written.

    ros2 run --prefix python3 ...    or    python3 ros2_node.py
"""

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from cmmfnet import Colorizer


class Colour(Node):
    def __init__(self):
        super().__init__("cmmfnet")
        model = self.declare_parameter("model", "cmmfnet-small").value
        self.text = self.declare_parameter("text", "").value or None
        self.colorizer = Colorizer.from_pretrained(model)
        self.out = self.create_publisher(Image, "/thermal/colour", 1)
        # the queue of a sensor drops old frames while one is being coloured
        self.create_subscription(Image, "/thermal/image", self.colour, qos_profile_sensor_data)

    def colour(self, message: Image) -> None:
        kind = np.dtype(np.uint8 if message.encoding == "mono8" else np.uint16)
        kind = kind.newbyteorder(">" if message.is_bigendian else "<")
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        frame = rows[:, : message.width * kind.itemsize].copy().view(kind)
        colour = self.colorizer(frame.astype(kind.newbyteorder("=")), text=self.text)
        out = Image(header=message.header, height=message.height, width=message.width)
        out.encoding, out.step, out.data = "rgb8", 3 * message.width, colour.tobytes()
        self.out.publish(out)


rclpy.init()
rclpy.spin(Colour())
