"""Icons beyond the classes of the world: individuals for the subject judge to learn from, never in a training
scene.
"""

from __future__ import annotations

import numpy as np

from worker.ml.toyworld.places import Array
from worker.ml.toyworld.sprites import SpriteKey, resized
from worker.ml.toyworld.world import HELD_OUT

_NAMES = """
airplane ambulance amphora anchor ant avocado bacon balloon banana baseball basketball bat battery bear
bed bell bicycle bird birthday-cake blossom blowfish boar bomb books bouquet bread briefcase bug burrito
bus cactus camel camera candle candy canoe carrot castle chair cheese-wedge cherries cherry-blossom
chestnut chicken chipmunk christmas-tree church circus-tent clapper-board closed-book cloud cocktail-glass
cookie couch-and-lamp cow crab crayon crocodile croissant crown crystal-ball cucumber dagger
deciduous-tree deer delivery-truck desktop-computer dolphin door doughnut dove dragon dress drum eagle
ear-of-corn egg eggplant evergreen-tree ewe factory fire-engine fish flashlight floppy-disk fountain
four-leaf-clover frog game-die gear ghost goat gorilla grapes green-book hamburger hammer hamster
headphone helicopter hibiscus honey-pot honeybee hospital hot-beverage hot-pepper ice-cream ice-skate
jack-o-lantern jeans joystick key kick-scooter kimono kiwi-fruit koala lady-beetle laptop lemon leopard
lion lipstick lizard locked locomotive lollipop maple-leaf meat-on-bone megaphone melon microphone
microscope minibus mobile-phone monkey motor-scooter motorcycle mouse necktie notebook oil-drum
orange-book ox palm-tree pancakes panda peach pear pencil pig pineapple pizza police-car popcorn postbox
potato poultry-leg printer purse racing-car radio ram rat rhinoceros ribbon ring robot rooster rose
rugby-football running-shirt running-shoe sailboat santa-claus satellite saxophone school scissors
scorpion seedling shark sheaf-of-rice shield ship shopping-cart shortcake shrimp skull snail snake
snowflake soccer-ball soft-ice-cream speedboat spider spiral-shell squid star strawberry sunflower syringe
t-shirt taco tangerine taxi telephone telescope television tent tiger tomato top-hat tractor train tram
trophy tropical-drink tropical-fish trumpet tumbler-glass turkey unicorn video-camera violin volleyball
watch water-buffalo watermelon whale wine-glass wolf wrapped-gift wrench
"""

FURTHER_NOUNS: tuple[str, ...] = tuple(name.replace("-", " ") for name in _NAMES.split())
"""As the sets name them, with spaces. None is an individual of a held-out subject's class."""

FURTHER_PX = 96


def further_sprites(
    sprites: dict[SpriteKey, Array], held_out: dict[SpriteKey, Array]
) -> dict[SpriteKey, Array]:
    """``sprites`` at ``FURTHER_PX``, without any that is, under another name, the drawing of a held-out
    subject.
    """
    small = {key: resized(rgba, FURTHER_PX) for key, rgba in sprites.items()}
    withheld = [resized(held_out[subject.key], FURTHER_PX) for subject in HELD_OUT if subject.key in held_out]
    return {
        key: rgba
        for key, rgba in small.items()
        if all(np.abs(rgba - other).mean() > 0.01 for other in withheld)
    }
