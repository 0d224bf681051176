def draw(experiment, folder):
    pass
