"""What a trained network is worth to other tasks: object detection and captioning."""
