"""Words for generated prompts."""

_ADJECTIVES = (
    "amber ample ancient bitter bold brave brief bright broad calm careful clever cold cosy crisp curious dark "
    "deep distant dry dusty eager early easy elder empty even faint fair famous fancy fierce fine firm flat fresh "
    "gentle giant golden grand hidden hollow honest huge humble icy inner jolly keen kind large late lean light "
    "little lively lone long loud loyal lucky merry mild misty modest muddy narrow neat noble odd old open pale "
    "patient plain polite proud quick quiet rapid rare rich rough round royal rusty sharp shy silent silver slim "
    "smooth soft solid stern sturdy sunny tall tidy tiny vivid warm wide wild windy wise witty young"
)
_NOUNS = (
    "acorn anchor apron arrow atlas badge bakery barrel basket beacon bench bottle bridge bucket button cabin "
    "candle canyon carpet castle cellar chimney circle cliff clock cloud compass corner cotton cradle desert "
    "drawer eagle engine fabric falcon fence ferry field flute forest fountain garden gate glacier hammer harbor "
    "hill horizon island jacket jungle kettle ladder lantern lemon library lily lizard magnet maple market meadow "
    "mirror mountain needle nest ocean orchard otter palace paper parcel pebble pepper pillow planet pocket pond "
    "quarry raven ribbon river saddle shovel spoon stable statue summer table temple thread tower tunnel valley "
    "village violin wagon walnut window winter"
)
_GIVEN_NAMES = (
    "Ada Bruno Carla Dario Elena Felix Greta Hugo Irma Jonas Karin Luca Marta Nils Olga Pavel Rosa Stefan Tilda Viktor"
)
_FAMILY_NAMES = (
    "Abbott Berger Castell Dahlgren Ekström Ferrari Gruber Hansen Iversen Jansen Keller Lindqvist Moreau Novak "
    "Olsen Petrov Quist Romano Silva Toth Urban Vogel Weber Ximenes Yilmaz Zeman"
)
_CITIES = (
    "Antwerp Bergen Cork Dresden Evora Florence Ghent Haarlem Izmir Jena Krakow Lyon Malmo Nantes Oulu Porto "
    "Rennes Seville Turku Uppsala Verona Wroclaw York Zadar"
)
_TRADES = (
    "baker botanist carpenter cartographer chemist clockmaker cook dentist engraver farmer gardener glazier "
    "harpist judge locksmith mason midwife miller painter pilot potter printer sailor saddler tailor teacher "
    "weaver zoologist"
)

# Adjective and noun make over 10,000 different pairs: as many as the longest list of words, at 128k tokens, needs.
ADJECTIVES = _ADJECTIVES.split()
NOUNS = _NOUNS.split()
GIVEN_NAMES = _GIVEN_NAMES.split()
FAMILY_NAMES = _FAMILY_NAMES.split()
CITIES = _CITIES.split()
TRADES = _TRADES.split()
