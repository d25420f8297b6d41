"""The Python API on the built-in data, step by step: train, predict new photos, hand them over.

python examples/python_api.py            # in minutes
python examples/python_api.py --debug    # in seconds, to see the steps run; the masks mean nothing
"""

import sys
from pathlib import Path

import dhr_lightning as dl

# %% Train from tags: everything that is fresh already is kept.
overlays = ("debug.yaml",) if "--debug" in sys.argv else ()
model = dl.run("base" if overlays else "quickstart", data="microworld", overlays=overlays)
print(model.title, model.classes, model.about)

# %% Predict any image: here the built-in validation photos.
photos = sorted(Path("data/microworld/JPEGImages").glob("val_*.jpg"))[:4]
for prediction in model.predict(photos):
    print(prediction.name, [(row["class"], row["share"], row["confidence"]) for row in prediction.shares()])
    prediction.save("found")

# %% Tags restrict the classes; tiles and scales are settings of the model.
print(model.predict(photos[0], tags=["dog"]).shares())
single = dl.load(model.title.split(" (")[0], data="microworld", overlays=overlays, settings=dl.Settings(scales=(1.0,)))
print((single.predict(photos[0]).mask == model.predict(photos[0]).mask).mean())

# %% Hand over: COCO annotations of one image.
print(model.predict(photos[0]).to_coco()[:1])
