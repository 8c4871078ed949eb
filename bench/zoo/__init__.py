"""Networks of our own, benign and backdoored, that calibrate the verdict and test purification."""
