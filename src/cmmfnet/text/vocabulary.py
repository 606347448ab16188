"""The vocabulary, and the tables behind `cmmfnet.text.parser.parse_tags`: synonyms, colours,
negation, filler words.

The vocabulary is the 171 class names of COCO-Stuff (Caesar, Uijlings, Ferrari, CVPR 2018: 80
things, 91 kinds of stuff) and six words for light and sky. Data only: to teach the parser a word,
add it to a line here.
"""

from __future__ import annotations


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The order of the rows in every table of tag vectors: append only.
_COCO_STUFF = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse,
remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair
drier, toothbrush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper,
pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile,
wall-wood,
water-other, waterdrops, window-blind, window-other, wood
"""
COCO_STUFF: tuple[str, ...] = tuple(
    name.strip() for name in _COCO_STUFF.replace("\n", " ").split(",")
)
LIGHTINGS = ("day", "dusk", "night")
SKIES = ("clear", "cloudy", "overcast")
EXTRA_WORDS: tuple[str, ...] = (*LIGHTINGS, *SKIES)
WORDS: tuple[str, ...] = COCO_STUFF + EXTRA_WORDS

# "tag[+tag]: phrase, phrase". A phrase stands for its singular and plural, "!flats" for this form
# only. Tag "road*": a part, whose colour is not the road's. Tag "-": says nothing about what is
# there. Tag "?": has no class. Classes are taken as COCO-Stuff uses them: a sign or flag is its
# "banner", a kerb is "pavement", a crossing is "road".
SYNONYMS = """
person: man, woman, people, child, kid, boy, girl, baby, toddler, lady, gentleman, guy, adult
person: human, pedestrian
person: walker, passer-by, passers-by, passerby, crowd, couple, family, worker, guard, visitor
person: customer, tourist
person: player, figure, officer, policeman, policewoman, soldier, driver, shopper, runner, jogger
person: commuter, student
person: teenager, elderly, friend, human being, someone, somebody, bystander, fireman, firefighter
person: builder, swimmer
person: workman, businessman, businesswoman, fisherman, postman, tradesman, hiker, gardener
person: youngster
person: mum, mom, mother, dad, father, parent, grandmother, grandfather, schoolchild
person: businessperson, onlooker
person+bicycle: cyclist, bicyclist
person+motorcycle: motorcyclist, biker
person+skateboard: skateboarder, skater
person+horse: horseman, horse rider
person+dog: dog walker
bicycle: bike, bicycle rack, bike rack, cycle, push bike, tricycle
motorcycle: motorbike, motor bike, moped, scooter, motor scooter, vespa
car: automobile, auto, vehicle, taxi, cab, sedan, saloon, hatchback, suv, estate car
car: station wagon, wagon, coupe
car: 4x4, jeep, minivan, van, off-road vehicle, off-road car, police car, sports car, convertible
car: limousine
car: motorcar, traffic, patrol car, parked vehicle, motor vehicle, mpv, camper van
bus: coach, minibus, double-decker, trolley bus, trolleybus, omnibus, school bus
train: tram, streetcar, locomotive, railcar, subway train, metro train, railway carriage
train: trolley car
truck: lorry, pickup, pick-up, pickup truck, pick-up truck, fire engine, fire truck, tanker
truck: dump truck, box truck
truck: box van, delivery van, delivery truck, semi-trailer, tractor, trailer, tow truck
truck: garbage truck, bin lorry
truck: flatbed, juggernaut, rubbish truck, refuse lorry, haulage truck, firetruck, ambulance
airplane: plane, aeroplane, aircraft, jet, airliner
boat: ship, ferry, yacht, dinghy, sailboat, sailing boat, vessel, canoe, kayak, barge, rowing boat
boat: motorboat
boat: ship mast, boat mast, fishing boat
traffic light: traffic signal, stoplight, stop light, signal light, traffic lamp
fire hydrant: hydrant
bench: park bench, garden bench
bird: pigeon, seagull, gull, duck, crow, swan, goose, sparrow
cat: kitten
dog: puppy, hound, golden retriever
cow: cattle, bull, calf
horse: pony, foal
sheep: lamb, ewe
backpack: rucksack, back pack, knapsack, school bag
handbag: bag, purse, shoulder bag, shopping bag, carrier bag
suitcase: luggage, trolley case
umbrella: parasol
sports ball: ball, football, soccer ball, tennis ball, basketball
cup: mug, teacup, beaker
wine glass: wineglass, goblet
cell phone: phone, mobile phone, cellphone, smartphone, telephone, mobile
tv: television, television set, tv set, telly, tv screen
laptop: notebook computer, laptop computer
remote: remote control
refrigerator: fridge, freezer
hair drier: hair dryer, hairdryer
donut: doughnut
couch: sofa, settee
chair: armchair, stool, seat
table: coffee table, picnic table, desk
dining table: dinner table
potted plant: pot plant, plant pot, houseplant, house plant, planter, flower pot, flowerpot
potted plant: flower urn
teddy bear: teddy, stuffed bear
book: textbook
clock: post clock, wall clock
banner: sign, flag, signboard, sign board, billboard, poster, placard, street sign, road sign
banner: traffic sign
banner: warning sign, signpost, sign post, hoarding, advertisement, neon sign, shop sign
banner: map board, notice board
banner: pennant, hanging sign, entry sign
branch: twig, bough
bridge: overpass, underpass, viaduct, flyover, footbridge, railway bridge
building-other: building, office, block, shop, store, church, tower, apartment building
building-other: office building, apartment
building-other: factory, warehouse, shed, barn, school, hospital, hotel, restaurant, cafe, mall
building-other: shopping mall
building-other: station, train station, railway station, bus station, police station, stadium
building-other: temple, mosque
building-other: cathedral, chapel, hut, kiosk, arcade, city, town, structure, facade, shopfront
building-other: storefront, museum
building-other: castle, petrol station, gas station, dome, supermarket, airport, downtown
building-other: parking garage
building-other: multi-storey car park, farm, farm building, outbuilding, garden shed, greenhouse
house: bungalow, cottage, villa, home, terraced house, semi-detached house, detached house
house: mansion, farmhouse
house: terrace house, townhouse, town house, residence, chalet, cabin, village
skyscraper: high-rise, high rise, highrise, tower block, !flats, block of flats, skyline
skyscraper: city skyline
skyscraper: high-rise building, office tower
bush: hedge, shrub, hedgerow, shrubbery, thicket, undergrowth
bush+flower: flowering hedge, flowering bush, flowering shrub
clothes: clothing, jacket, coat, shirt, t-shirt, tshirt, trousers, jeans, !shorts, dress, skirt
clothes: sweater, sweatshirt
clothes: jumper, hoodie, suit, uniform, vest, waistcoat, leggings, top, hat, cap, helmet, boots
clothes: shoes, scarf, gloves
clothes: outfit, raincoat
cloth: fabric, rag
clouds: cloud
curtain: drape, drapery
dirt: soil, earth, dirt road, dirt track, dirt path, bare soil, bare earth
door-stuff: doorway, entrance, gateway, front door, garage door, portal, entrance door, side door
fence: fencing, fence post, wire fence, chain-link fence, chain link, mesh fence, barrier, gate
fence: palisade, rail fence
fence: picket fence, guard fence
flower: bed of flowers, blossom, rose, tulip, daffodil, flower bed, flowerbed, flowering plant
flower: bloom
fog: mist, haze, smog, foggy, misty, hazy
food-other: meal, snack
grass: lawn, turf, meadow, field, pasture, verge, grass verge, grassland, garden, grassy
grass: back garden, front garden
grass: grass strip, farmland, wheat field, corn field, cornfield, crop field, front lawn, back lawn
tree+grass: park, parkland, orchard
gravel: shingle, pebble, gravel path, gravel drive, gravel driveway, gravel road
ground-other: wharf, quay, boardwalk, courtyard, waterfront, bare ground, quayside
hill: hillside, slope, embankment, hilly
leaves: foliage, leaf, leafage
light: lamp, street light, streetlight, street lamp, streetlamp, lamp post, lamppost, light pole
light: garden lamp
light: lantern, headlight, head light, headlamp, tail light, taillight, tail lamp, brake light
light: floodlight, spotlight
light: lighting, illumination, light bulb, fairy light, neon light, lamp light, lamplight
light: light trail
metal: steel, iron
mirror-stuff: mirror
mountain: mountainside, mountain range, peak
mud: muddy
net: netting
paper: newspaper, newspaper box
pavement: sidewalk, footpath, footway, path, walkway, kerb, curb, square, yard, plaza, paving
pavement: paving stone, cobble
pavement: cobblestone, paved drive, paved driveway, alley, pathway, kerbstone, kerbside, promenade
pavement: patio
pavement: paving slab, town square, market square
plant-other: plant, ivy, fern, bamboo, agave, vegetation, greenery, weed, reed, crop, creeper
plant-other: vine, vegetable garden
platform: pier, jetty, dock, landing stage, train platform, railway platform
playingfield: playing field, football pitch, soccer field, tennis court, football field
playingfield: sports field, pitch
playingfield: playground
railing: rail, guardrail, guard rail, balcony, handrail, hand rail, banister, balustrade
railing: crash barrier
railroad: railway, rail track, railway track, train track, railroad track, railway line, !rails
railroad: tramline, tram track
river: stream, creek, brook
road: street, asphalt, tarmac, lane, avenue, highway, motorway, freeway, carriageway, roundabout
road: traffic circle
road: intersection, junction, crossroad, crossing, driveway, drive way, parking lot, !car park
road: !car parks, boulevard
road: bus lane, cycle lane, bike lane, road surface, street corner, parking space, drive
road: country road
road: dual carriageway, parking area, wharf road, runway, country lane, slip road, side street
road: back street
road: high street, main street, carpark
rock: boulder, cliff
roof: roof tile, rooftop, tiled roof, roofed, gabled, eaves, roofline
sand: sandy, beach, shore, dune, seaside, seashore, sandy shore, sandy beach, desert
sea: ocean, harbour, harbor, seafront, coast, sea front
shelf: shelves, shelving, bookshelf
sky-other: sky, heaven
sky-other+clear: clear sky, cloudless sky, clear blue sky, sunny sky
sky-other+clouds+cloudy: cloudy sky, partly cloudy sky
sky-other+overcast: overcast sky, grey overcast sky
snow: snowy, ice, snow-covered, icy, snowfall, snowdrift, frozen, frost, frosty
plastic: plastic bag
straw: hay, haystack, hay bale, straw bale
stairs: !steps, staircase, stairway, flight of steps, flight of stairs, stair
stone: bollard, kerb stone, stonework
structural-other: fountain, statue, monument, pillar, column, arch, bus stop, bus shelter, shelter
structural-other: sculpture
structural-other: scaffolding, pergola, archway
tent: stall, canopy, awning, marquee, gazebo, market stall, food stall
towel: bath towel
tree: palm, palm tree, pine, pine tree, oak, birch, willow, fir, conifer, forest, !woods, woodland
tree: grove, treetop
tree: poplar, cypress, tree top, tree line, treeline, sapling, leafless tree, bare tree, olive tree
vegetable: veg
wall-concrete: wall, garden wall, house wall, boundary wall, retaining wall, sea wall, concrete
wall-concrete: plaster, stucco
wall-brick: brick, brickwork, stone brick wall
water-other: water, lake, lakeside, pond, pool, canal, swimming pool, puddle, fountain basin
water-other: reservoir
waterdrops: raindrop, water drop, droplet, water droplet
window-blind: blind, venetian blind, window blind
window-other: window, window pane, windscreen, windshield, bay window, shop window, glass, bay
window-other: glazing, skylight
wood: timber, log, plank
day: daytime, daylight, in the daytime, noon, midday, morning, afternoon, by day
dusk: evening, twilight, sunset, dawn, sunrise, nightfall, sundown, gloaming, sun setting
dusk: setting sun, golden hour
dusk: rising sun, sun rising, blue hour
night: nighttime, night-time, midnight, after dark, darkness, in the dark, nocturnal, moonlight
night: moonlit, lamplit
night: starry, moon, full moon, !it is dark, !it's dark, dark outside, at nighttime
clear: sunny, cloudless, sunshine, sunlit, sun, sunlight, bright sun
cloudy: partly cloudy, partly overcast
overcast: rainy, rain, drizzle, stormy, light rain
-: no longer, not far, not only, not just, no doubt, no one, nobody, nothing but, one day
-: clear view, clear road
-: clear street, clear path, clear glass, on top, on top of, at the top, top of, top left
-: top right, ground floor
-: first floor, second floor, steps into, steps out, steps in, steps over, steps off, tower above
-: tower over
-: leaves the, couple of, field of view, security camera, surveillance camera, dash cam
-: helicopter view, drone view
-: aerial view, bird's eye view, thermal camera
?: traffic cone, utility pole, telephone pole, telegraph pole, power pole, power line, wheelie bin
?: wheeled bin
?: litter bin, rubbish bin, trash can, post box, mail box, phone box, telephone box, phone booth
?: bird bath
?: log store, solar panel, construction site, solar farm, trash bin, garbage bin, garbage can
?: dustbin, overhead line
?: wind turbine, building site, hot air balloon
road*: crosswalk, zebra crossing, !pedestrian crossing, !pedestrian crossings, road marking
road*: lane marking
road*: line marking, marking, centre line, white line, yellow line
tree*: trunk, tree trunk
window-other*: window frame
door-stuff*: door frame
bicycle*: bike fork
house*: porch, garage
roof*: gable, chimney, dormer
"""

# A material makes a wall or floor class ("wall of bricks") and qualifies a building ("stone house":
# house, wall-stone).
WALLS = {
    "wall-brick": "brick",
    "wall-stone": "stone flint cobble rock",
    "wall-wood": "wood wooden timber plank log",
    "wall-concrete": "concrete cement plaster plastered stucco rendered block",
    "wall-tile": "tile tiled",
    "wall-panel": "panel panelled paneled metal glass steel",
}
BUILT_OF = ("wall-brick", "wall-stone", "wall-wood", "wall-concrete")
WALL_KINDS = ("garden", "boundary", "retaining", "perimeter", "house", "block", "outer")
FLOORS = {
    "floor-marble": "marble",
    "floor-stone": "stone",
    "floor-tile": "tile tiled",
    "floor-wood": "wood wooden plank",
}
# Directly before another known noun these only describe it: "stone railing" is a railing, "iron
# gate" a fence.
MATERIALS = _set("""
stone metal steel iron glass wood timber log plank concrete plaster stucco plastic paper cardboard
straw cloth fabric
""")
# Nouns only after an article, because they are verbs too: "in the park", but "cars park here".
NOUN_AFTER_ARTICLE = frozenset({"park", "drive", "top"})
SIZES = _set("""
big small large little wide narrow long short broad paved public city
""")
# Nouns only if no colour follows: "a square white house" has no square.
ADJECTIVES_TOO = frozenset({"square"})

IRREGULAR_PLURALS = {
    "men": "man", "women": "woman", "children": "child", "buses": "bus", "busses": "bus",
    "leaves": "leaf",
    "knives": "knife", "mice": "mouse", "shelves": "shelf", "geese": "goose", "taxis": "taxi",
    "calves": "calf",
    "scarves": "scarf", "wolves": "wolf", "schoolchildren": "schoolchild",
    "ties": "tie", "canoes": "canoe", "shoes": "shoe", "wharves": "wharf", "rooves": "roof",
    "loaves": "loaf",
}  # fmt: skip

# Spelling -> the basic colour. A shade before it is kept ("dark green"), and so is a pair
# ("blue-grey").
COLOURS: dict[str, str] = {
    spelling: basic
    for basic, spellings in {
        "black": "black blackish charcoal",
        "white": "white whitish ivory",
        "grey": "grey gray greyish grayish",
        "silver": "silver silvery",
        "red": "red reddish scarlet crimson maroon burgundy ruby",
        "orange": "orange orangey amber terracotta rust rusty",
        "yellow": "yellow yellowish golden gold mustard",
        "green": "green greenish olive lime khaki emerald",
        "cyan": "cyan teal turquoise aqua",
        "blue": "blue bluish blueish navy azure indigo",
        "purple": "purple purplish violet lilac mauve magenta lavender",
        "pink": "pink pinkish salmon peach",
        "brown": "brown brownish tan chestnut bronze copper auburn",
        "beige": "beige cream creamy buff",
    }.items()
    for spelling in spellings.split()
}
SHADES = _set("""
dark light pale bright deep dull vivid faded
""")

NEGATORS = _set("""
no not without neither nor never none cannot lacking lacks minus excluding
""")
_NEGATOR_PHRASES = """
free of, empty of, devoid of, void of, clear of, lack of, absence of, no sign of, no trace of,
instead of, rather than
"""
NEGATOR_PHRASES = tuple(tuple(phrase.split()) for phrase in _NEGATOR_PHRASES.split(","))

ARTICLES = _set("""
a an the this that these those its his her their my your our some any each every
""")
PREPOSITIONS = _set("""
about above across after against ahead along alongside amid among amongst around as at before behind
below beneath
beside besides between beyond by down during except facing for from in inside into like near nearby
next off on onto
opposite outside over past per round since through throughout till to toward towards under
underneath until up upon
via while with within but yet so because if when where which who whom whose than then there here i
he she it we you
they him them us me
""")
VERBS = _set("""
add appear approach arch are be bend blur border brake bring browse build can carry cast chain chat
check climb clip
close come contain cover crack cross crouch curve cut dangle dazzle deck depict display dip do draw
drive edge enter
extend face fade fall feature fill find flank flare float flood fly follow frame gather get give
glare glaze glide
glint glisten glow go grow hang have head help hide hold hurry illuminate include is jump jut keep
kneel label lay
lead lean let lie lift line litter load look loom make mark may meet merge mount move must name near
open overexpose
overhang overlook own pack paint panel park pass pave photograph picture plant play point pose pull
push put queue
raise reach read reflect render ride rise roll run say see seem shade share shine should show
silhouette sit slope
slow span speed sprawl spread sprinkle stack stand start stay step stop stretch stride string stroll
sleep eat drink
surround sway sweep swing take talk tar tower travel turn understand use view visit wait walk want
wear wind wrap will
would could glimpse parallel bustle splash light top fringe dot scatter stain dash patch tinge
revolve burn mow graze
collect wash clean repair
""")
IRREGULAR_VERBS = _set("""
was were been being am has had does did done went gone came stood sat lay lain laid led hung held
seen saw made ran
drove driven rode ridden rose risen took taken built worn wore shone lit unlit unpaved drawn grew
grown fell fallen
left kept met cast spread strung swept wound hidden hid gave given put cut set shown let got said
wrote written flown
broke broken
""")
SOFT = _set("""
of and or one two three four five six seven eight nine ten eleven twelve dozen dozens hundred
hundreds thousand few
several many much more most less least lot lots plenty number numerous single double triple couple
pair pairs half
both all other others another either full whole entire multiple various different same only just
also too even group
groups row rows line lines bunch cluster clusters set series rest part parts patch patches piece bit
strip strips side
sides left right middle centre center central front back rear end ends top bottom edge edges corner
corners distance
foreground background horizon scene view image picture photo photograph shot frame camera place area
far away further
farther close distant nearest directly out together apart aside upper lower inner outer hand
direction directions
opposite overhead upright first second third last north south east west way ways midst shape form
kind type sort big
small large little tiny huge giant tall short long low high wide narrow broad thick thin deep
shallow steep flat round
rounded square straight curved curving slender massive great old new young modern ancient busy empty
quiet crowded
dense sparse open closed wet dry warm cold cool hot smooth rough clean dirty neat bare leafy
leafless bushy shady
shaded heavy loose solid shiny glossy plain striped checked patterned spotted hooded painted
colorful colourful
coloured colored simple typical ordinary common public private local urban suburban residential
rural commercial
industrial main major minor storey story storeys stories level tiered terraced detached semi
attached neighbouring
neighboring oncoming ongoing outdoor indoor still visible unlit backlit floodlit bright dark light
pale dull gleaming
glowing dazzling brightly partly mostly nearly almost very quite rather slightly softly mainly
completely fully
heavily closely slowly quickly faintly dimly newly well pretty nice beautiful ugly real clear dim
arched arcaded
pointed hipped spiky ornate spreading camouflaged safety utility wooden terrace time hour such
shadowy lush overgrown
tarred gentle sharp slight sloping winding twin matching similar plus vs please colour color colours
colors thermal
infrared realistic style look scenery weather conditions condition shadow shadows freestanding tiled
slate shopping
smaller larger bigger taller longer higher roadside trim base boxy topped tinged based trunked
doored edged sided
faced ish mid outdoors mown cobbled neon hi vis footage drone aerial country security surveillance
happy lively
""")

MAX_TAGS = 16
"""Names of one picture that a network takes; of more names the first count."""
